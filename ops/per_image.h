// Arguments of depthwise_conv_per_image, checked, and memory for its results. Shared by the CPU and the CUDA operator.
#pragma once

#include "arguments.h"

namespace dk {

using PerImageGradients = std::tuple<Tensor, Tensor>;  // of input and weight

inline Geometry check_per_image(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                                const Pair& dilation) {
  check_input(input);
  if (weight.dim() != 4 || weight.size(0) != input.size(0) || weight.size(1) != input.size(1) || weight.size(2) < 1 ||
      weight.size(3) < 1)
    fail("weight: expected (N, C, Kh, Kw) with N = ", input.size(0), " images and C = ", input.size(1),
         " channels as in input and Kh, Kw >= 1, got shape ", shape_text(weight));
  check_like("weight", weight, input, false);
  return check_geometry(input, weight, {weight.size(2), weight.size(3)}, stride, padding, dilation, true);
}

inline PerImageGradients empty_per_image_gradients(const Tensor& input, const Tensor& weight, const Mask& wanted) {
  check_mask(wanted, 2);
  const Pair none{0};
  return {wanted[0] ? empty_in_format_of(input, sizes_of(input)) : torch::stable::new_empty(input, none),
          torch::stable::new_empty(weight, wanted[1] ? sizes_of(weight) : none)};
}

}  // namespace dk
