// Which calls the tensor-core path takes.
#pragma once

#include "../arguments.h"

namespace dk {

// Whether a call is for this path: indices of pixels fit 32 bits and one tap's coefficients shared memory.
inline bool fits_fast(const Geometry& g, ScalarType type) {
  const int64_t pixels = g.batch * (g.height * g.width > g.out_height * g.out_width ? g.height * g.width
                                                                                     : g.out_height * g.out_width);
  const int64_t largest = g.pad_h | g.pad_w | g.stride_h | g.stride_w | g.channels | g.kernel_h | g.kernel_w |
      (g.dilation_h * g.kernel_h) | (g.dilation_w * g.kernel_w);
  const int64_t samples = (g.scope_h + 3) / 4 * 4 * g.scope_w;
  return type != ScalarType::Double && pixels < INT32_MAX - 64 && largest < (1 << 28) && samples <= 512 &&
      g.taps() < (1 << 20) && g.kernel_w <= (1 << 11);
}

}  // namespace dk
