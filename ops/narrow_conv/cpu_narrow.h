// What the kernels of a convolution with few outputs work on: offset generators, 2 outputs a tap. A library's
// convolution has vectors of outputs, of which 18 outputs leave 14 of 32 lanes idle; here lanes are channels.
#pragma once

#include "../common/arguments.h"
#include "../common/cpu_variant.h"

namespace dk {

constexpr int64_t kNarrowOutputs = 6;    // outputs that are summed at once
constexpr int64_t kNarrowChannels = 16;  // channels come in multiples of it: a vector of any instruction set

// One image, channels_last: pixels of adjacent channels, `step` apart.
struct Narrow {
  const Geometry* g;
  int64_t outputs;
  const float* x;
  int64_t x_step;

  // Forward: the positions [begin, end) of all, row after row.
  int64_t begin, end;
  const float* weight;  // (blocks of kNarrowOutputs, taps, channels / lanes, kNarrowOutputs, lanes), zeros in the last
  const float* bias;    // a value an output, in whole blocks
  const float* zeros;   // as many as channels: what a tap outside the image reads
  float* out;           // of position 0; a position's outputs are adjacent
  int64_t out_step;

  // Gradient of the weight, of the channels of one vector from `channel` on.
  const float* grad;  // out_height x out_width pixels of `outputs`
  int64_t grad_step, channel;
  float* grad_weight;  // (taps, outputs, kNarrowChannels), accumulated
};

struct NarrowKernels {
  int64_t lanes;
  void (*forward)(const Narrow&);
  void (*weight_gradient)(const Narrow&);
};

DK_DECLARE_VARIANTS(NarrowKernels, kNarrow)

// The best variant this processor runs.
inline const NarrowKernels& narrow_kernels() { return DK_BEST_VARIANT(kNarrow); }

}  // namespace dk
