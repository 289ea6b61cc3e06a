// What one call of an unfolding kernel works on: a few positions of one image. Independent of the instruction set.
#pragma once

#include <type_traits>

#include "../common/cpu_variant.h"
#include "../deform_kernel_conv/axis.h"
#include "op.h"

namespace dk {

constexpr int64_t kLanes = 16;  // positions whose taps are decoded together: one AVX-512 vector
constexpr int64_t kRun = 128;   // channels of a group that are worked on at a time: their columns stay in the cache

// Adjacent channels of one group: the first, counted from the block's, where its columns are, and how many.
struct Run {
  int64_t channel, at, count;
};

// Offsets and their gradients are (2 taps, kLanes), zero-filled; pixels are of adjacent channels.
template <class A>
struct UnfoldBlock {
  const Geometry* g;
  int64_t position, positions;  // the first, counted row after row, and how many, at most kLanes
  const Run* runs;              // of the block's channels
  int64_t run_count, depth;     // depth: channels of a group
  const A* x;                   // pixel (0, 0), of the block's first channel
  int64_t x_step;
  const A *data_offset, *kernel_offset;  // data_offset: null where taps rest on the grid
  A* columns;                            // of the first position; written forward, read backward

  // Backward; null where not wanted.
  A* grad_x;  // as x, added to
  int64_t grad_step;
  A *grad_data_offset, *grad_kernel_offset;  // written

  A* scratch;      // unfold_scratch_size(taps) elements
  const A* zeros;  // kRun: what taps read outside the image
  A* unread;       // kRun: and what they add to there
};

// Decoded taps, scope's and image's: 4 corners' places, coefficients and derivatives in y and x; a position's dots with
// 8 corners of vectors of at most 64 bytes; and those summed of all positions.
template <class A>
int64_t unfold_scratch_size(int64_t taps) {
  return taps * (32 * kLanes + 8 * 64 / int64_t(sizeof(A)) + 8 * kLanes) + 2 * kLanes;
}

template <class A>
struct UnfoldKernels {
  void (*forward[2])(const UnfoldBlock<A>&);  // [data_offset given]
  void (*backward[2])(const UnfoldBlock<A>&);
};

DK_DECLARE_VARIANTS(UnfoldKernels<float>, kFloatUnfold)
DK_DECLARE_VARIANTS(UnfoldKernels<double>, kDoubleUnfold)

// The best variant this processor runs.
template <class A>
const UnfoldKernels<A>& unfold_kernels() {
  if constexpr (std::is_same_v<A, float>)
    return DK_BEST_VARIANT(kFloatUnfold);
  else
    return DK_BEST_VARIANT(kDoubleUnfold);
}

}  // namespace dk
