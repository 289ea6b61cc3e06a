#include <immintrin.h>

#include <type_traits>

#include "narrow.h"
#include "row.h"  // before the pragma, as narrow.h: their functions are shared with other files

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512")
#define DK_ISA avx512
#define DK_BYTES 64
#include "row_kernels.h"

namespace dk {
extern const RowKernels<float> kFloatAvx512 = avx512::Variant<float>::kernels;
extern const RowKernels<double> kDoubleAvx512 = avx512::Variant<double>::kernels;
extern const NarrowKernels kNarrowAvx512 = avx512::kNarrow;
extern const LineKernels kLinesAvx512 = avx512::Lines::kernels;
}  // namespace dk
#endif
