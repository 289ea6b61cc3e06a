// The row kernels, vectorised over channels. Included once for each instruction set: DK_ISA names its namespace and
// DK_BYTES is its vector width. Nothing here may call a function shared with other files (it would be compiled for
// this instruction set and could be linked into code that runs on less).
//
// Cost a tap and vector of channels: forward, 5 loads and 5 multiply-adds with kernel or data offsets, 8 and 9 with
// both, and one load and four shuffles (without AVX-512 or AVX2 four loads) for the coefficients of up to 16 vectors;
// where nothing moves 1.25 loads and 1. A processor that loads and multiplies 64 bytes a cycle so needs 5 and 9 cycles.
// Backward with kernel offsets 14 multiplications or multiply-adds, 5 loads and 3 stores, two of each for the offset's
// gradient; with data offsets 14, 11 and 6. Each coefficient is loaded once for two vectors.

#include <type_traits>

#include "../axis.h"
#include "narrow.h"
#include "row.h"

// The next loop's iterations touch different memory: what the compiler must know to vectorise it.
#if defined(__clang__)
#define DK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DK_INDEPENDENT _Pragma("GCC ivdep")
#endif

// One copy of each, not one in every kernel: they are a small part of the time and most of the compiler's.
#define DK_NOINLINE __attribute__((noinline))

namespace dk {
namespace DK_ISA {

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(DK_BYTES)));
};

// A vector of half the size; of two lanes, one number.
template <class V, class A>
static auto half_of() {
  typedef A Half __attribute__((vector_size(sizeof(V) / 2)));
  if constexpr (sizeof(V) == 2 * sizeof(A))
    return A();
  else
    return Half();
}

template <class V, class A>
static inline V load(const A* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class A>
static inline void store(A* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

#include "row_decode.h"
#include "row_forward.h"
#include "row_rigid_forward.h"
#include "row_lines.h"

#include "pack.h"
#include "row_list.h"
#include "row_backward.h"
#include "row_rigid_backward.h"

#include "narrow_kernels.h"

static constexpr NarrowKernels kNarrow = {kNarrowLanes, narrow_forward, narrow_weight_gradient};

template <class A>
struct Variant {
  static constexpr RowKernels<A> kernels = {
      {{rigid_row<A>, forward_row<A, false, true>},
       {forward_row<A, true, false>, forward_row<A, true, true>}},
      {{backward_row<A, false, false>, backward_row<A, false, true>},
       {backward_row<A, true, false>, backward_row<A, true, true>}},
      kChunk<A>, to_chunks<A>, from_chunks<A>};
};

}  // namespace DK_ISA
}  // namespace dk
