// Which calls the tensor-core path takes.
#pragma once

#include "op.h"

namespace dk {

// Whether the distance of a tensor's last value from its first fits 32 bits.
inline bool is_within_reach(const Tensor& t) {
  int64_t reach = 0;
  for (int64_t d = 0; d < t.dim(); ++d) reach += (t.size(d) - 1) * t.stride(d);
  return reach <= INT32_MAX;
}

// Whether a call is for this path: coordinates and indices of taps, pixels, offsets and weights fit 32 bits,
// coefficients the shared memory that every GPU from sm_80 on gives a block, 99 KB (the data offsets' gradient holds
// those of three taps, the rest of one), and channels the 65,535 blocks of a grid's second dimension.
inline bool fits_fast(const Geometry& g, ScalarType type, const OptionalTensor& data_offset,
                      const OptionalTensor& kernel_offset, const Tensor& weight) {
  for (const OptionalTensor& offset : {data_offset, kernel_offset})  // and their gradients, which are dense
    if (offset && (!is_within_reach(*offset) || offset->numel() > INT32_MAX)) return false;
  if (!is_within_reach(weight)) return false;
  const int64_t pixels =
      g.batch * (g.height * g.width > g.out_height * g.out_width ? g.height * g.width : g.out_height * g.out_width);
  const int64_t largest = g.pad_h | g.pad_w | g.stride_h | g.stride_w | g.channels | g.kernel_h | g.kernel_w |
      (g.dilation_h * g.kernel_h) | (g.dilation_w * g.kernel_w);
  const int64_t samples = (g.scope_h + 3) / 4 * 4 * g.scope_w;
  const int64_t padded =
      g.height + 2 * g.pad_h > g.width + 2 * g.pad_w ? g.height + 2 * g.pad_h : g.width + 2 * g.pad_w;
  return type != ScalarType::Double && pixels < INT32_MAX - 64 && padded < INT32_MAX && largest < (1 << 28) &&
      samples <= (data_offset ? 240 : 512) && (g.channels / 256 + 1) * (samples / 16 + 1) <= 65535 &&
      g.taps() < (1 << 20);
}

}  // namespace dk
