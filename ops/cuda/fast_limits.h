// Which calls the tensor-core path takes.
#pragma once

#include "../arguments.h"

namespace dk {

// Whether a call is for this path: coordinates and indices of pixels fit 32 bits, coefficients the shared memory that every
// GPU from sm_80 on gives a block, 99 KB (the data offsets' gradient holds those of three taps, the rest of one), and
// channels the 65,535 blocks of a grid's second dimension.
inline bool fits_fast(const Geometry& g, ScalarType type, bool has_data) {
  const int64_t pixels = g.batch * (g.height * g.width > g.out_height * g.out_width ? g.height * g.width
                                                                                     : g.out_height * g.out_width);
  const int64_t largest = g.pad_h | g.pad_w | g.stride_h | g.stride_w | g.channels | g.kernel_h | g.kernel_w |
      (g.dilation_h * g.kernel_h) | (g.dilation_w * g.kernel_w);
  const int64_t samples = (g.scope_h + 3) / 4 * 4 * g.scope_w;
  const int64_t padded = g.height + 2 * g.pad_h > g.width + 2 * g.pad_w ? g.height + 2 * g.pad_h : g.width + 2 * g.pad_w;
  return type != ScalarType::Double && pixels < INT32_MAX - 64 && padded < INT32_MAX && largest < (1 << 28) &&
      samples <= (has_data ? 240 : 512) && (g.channels / 256 + 1) * (samples / 16 + 1) <= 65535 && g.taps() < (1 << 20) &&
      g.kernel_w <= (1 << 11);
}

}  // namespace dk
