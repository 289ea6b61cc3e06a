#include <immintrin.h>

#include <type_traits>

#include "narrow.h"
#include "row.h"  // before the pragma, as narrow.h: their functions are shared with other files

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#define DK_ISA avx2
#define DK_BYTES 32
#include "row_kernels.h"

namespace dk {
extern const RowKernels<float> kFloatAvx2 = avx2::Variant<float>::kernels;
extern const RowKernels<double> kDoubleAvx2 = avx2::Variant<double>::kernels;
extern const NarrowKernels kNarrowAvx2 = avx2::kNarrow;
extern const LineKernels kLinesAvx2 = avx2::Lines::kernels;
}  // namespace dk
#endif
