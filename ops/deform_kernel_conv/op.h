// deform_kernel_conv on any device: its arguments, checked, memory for its results, and its entries.
#pragma once

#include "../common/arguments.h"

namespace dk {

inline Geometry check_arguments(const Tensor& input, const OptionalTensor& data_offset,
                                const OptionalTensor& kernel_offset, const Tensor& weight, const Pair& kernel_size,
                                const Pair& stride, const Pair& padding, const Pair& dilation, bool clip) {
  check_input(input);
  if (weight.dim() != 4 || weight.size(0) != input.size(1) || weight.size(1) != 1 || weight.size(2) < 1 ||
      weight.size(3) < 1)
    fail("weight: expected (C, 1, Sh, Sw) with C = ", input.size(1),
         " channels as in input and Sh, Sw >= 1, got shape ", shape_text(weight));
  check_like("weight", weight, input, false);
  const Geometry g = check_geometry(input, scope_of(weight), kernel_size, stride, padding, dilation, clip);
  check_offset("data_offset", data_offset, input, g);
  check_offset("kernel_offset", kernel_offset, input, g);
  return g;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of input, data_offset, kernel_offset, weight

// Memory for them. An offset that is not there, and what is not wanted, gets an empty tensor.
inline Gradients empty_gradients(const Tensor& input, const OptionalTensor& data_offset,
                                 const OptionalTensor& kernel_offset, const Tensor& weight, const Mask& wanted) {
  check_mask(wanted, 4);
  const auto of = [&](const OptionalTensor& t, bool want) {
    return t && want ? empty_in_format_of(*t, sizes_of(*t)) : torch::stable::new_empty(input, Pair{0});
  };
  return {of(input, wanted[0]), of(data_offset, wanted[1]), of(kernel_offset, wanted[2]),
          torch::stable::new_empty(weight, wanted[3] ? sizes_of(weight) : Pair{0})};
}

// A call with checked arguments, and on CUDA the stream it runs on.
struct DK_HIDDEN Operator {
  Geometry g;
  Tensor input;
  OptionalTensor data_offset, kernel_offset;
  Tensor weight;
  void* stream = nullptr;
};

// The entries of the two operators on a device, which computes by
//   static void forward(Operator op, Tensor& output);
//   static void backward(Operator op, const Tensor& grad, Gradients& gradients, const Mask& wanted, Determinism);
template <class Device>
Tensor deform_kernel_conv(const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
                          const Tensor& weight, const Pair& kernel_size, const Pair& stride, const Pair& padding,
                          const Pair& dilation, bool clip) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() != 0) Device::forward(Operator{g, input, data_offset, kernel_offset, weight}, output);
  return output;
}

template <class Device>
Gradients deform_kernel_conv_backward(const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset,
                                      const OptionalTensor& kernel_offset, const Tensor& weight,
                                      const Pair& kernel_size, const Pair& stride, const Pair& padding,
                                      const Pair& dilation, bool clip, bool deterministic, bool warn_only,
                                      const Mask& output_mask) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  check_gradient(grad, input, g);
  Gradients gradients = empty_gradients(input, data_offset, kernel_offset, weight, output_mask);
  if (!are_trivial(grad, gradients, output_mask))
    Device::backward(Operator{g, input, data_offset, kernel_offset, weight}, grad, gradients, output_mask,
                     Determinism{deterministic, warn_only});
  return gradients;
}

}  // namespace dk
