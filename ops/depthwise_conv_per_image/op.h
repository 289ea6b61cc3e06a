// depthwise_conv_per_image on any device: its arguments, checked, memory for its results, and its entries.
#pragma once

#include "../common/arguments.h"

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
  return check_geometry(input, scope_of(weight), scope_of(weight), stride, padding, dilation, true);
}

inline PerImageGradients empty_per_image_gradients(const Tensor& input, const Tensor& weight, const Mask& wanted) {
  check_mask(wanted, 2);
  const Pair none{0};
  return {wanted[0] ? empty_in_format_of(input, sizes_of(input)) : torch::stable::new_empty(input, none),
          torch::stable::new_empty(weight, wanted[1] ? sizes_of(weight) : none)};
}

// A call with checked arguments, and on CUDA the stream it runs on.
struct DK_HIDDEN PerImageOperator {
  Geometry g;
  Tensor input, weight;
  void* stream = nullptr;
};

// The entries of the two operators on a device, which computes by
//   static void forward(PerImageOperator op, Tensor& output);
//   static void backward(PerImageOperator op, const Tensor& grad, PerImageGradients& gradients, const Mask& wanted);
template <class Device>
Tensor depthwise_conv_per_image(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                                const Pair& dilation) {
  const Geometry g = check_per_image(input, weight, stride, padding, dilation);
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() != 0) Device::forward(PerImageOperator{g, input, weight}, output);
  return output;
}

template <class Device>
PerImageGradients depthwise_conv_per_image_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                    const Pair& stride, const Pair& padding, const Pair& dilation,
                                                    bool /*deterministic: always*/, bool /*warn_only*/,
                                                    const Mask& output_mask) {
  const Geometry g = check_per_image(input, weight, stride, padding, dilation);
  check_gradient(grad, input, g);
  PerImageGradients gradients = empty_per_image_gradients(input, weight, output_mask);
  if (!are_trivial(grad, gradients, output_mask))
    Device::backward(PerImageOperator{g, input, weight}, grad, gradients, output_mask);
  return gradients;
}

}  // namespace dk
