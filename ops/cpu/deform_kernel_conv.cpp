// deform_kernel_conv on the CPU: deformable kernels and deformable convolution, depthwise. The schemas are here too.
//
// Work is cut by the sizes alone, never by the number of threads, and sums over pieces are taken in a fixed order, so
// results are the same bits for any number of threads. Nothing of the size taps x positions x channels is stored.
#include <torch/csrc/stable/library.h>

#include "backward.h"
#include "forward.h"

namespace dk {
namespace {

Tensor deform_kernel_conv(
    const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset, const Tensor& weight,
    const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation, bool clip) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() == 0) return output;
  if (input.scalar_type() == ScalarType::Double)
    forward<double>(g, input, data_offset, kernel_offset, weight, output);
  else
    forward<float>(g, input, data_offset, kernel_offset, weight, output);
  return output;
}

Gradients deform_kernel_conv_backward(
    const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
    const Tensor& weight, const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation,
    bool clip, bool /*deterministic: always*/, bool /*warn_only*/, const Mask& output_mask) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  check_gradient(grad, input, g);
  Gradients gradients = empty_gradients(input, data_offset, kernel_offset, weight, output_mask);
  if (are_trivial(grad, gradients, output_mask)) return gradients;
  if (input.scalar_type() == ScalarType::Double)
    backward<double>(g, grad, input, data_offset, kernel_offset, weight, gradients, output_mask);
  else
    backward<float>(g, grad, input, data_offset, kernel_offset, weight, gradients, output_mask);
  return gradients;
}

std::string chosen_variant() { return cpu_variant(); }

}  // namespace

STABLE_TORCH_LIBRARY(dk_bench, m) {
  m.def(
      "deform_kernel_conv(Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, bool clip) -> Tensor");
  // Gradients of input, data_offset, kernel_offset and weight; an empty tensor for an offset that is not there and for
  // what the mask leaves out. Where no deterministic algorithm is there, it is an error, or with warn_only a warning.
  m.def(
      "deform_kernel_conv_backward(Tensor grad, Tensor input, Tensor? data_offset, Tensor? kernel_offset, "
      "Tensor weight, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool clip, bool deterministic, "
      "bool warn_only=False, bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)");
  // The instruction set the CPU operators use here: baseline, avx2 or avx512.
  m.def("cpu_variant() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CompositeExplicitAutograd, m) { m.impl("cpu_variant", TORCH_BOX(&chosen_variant)); }

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("deform_kernel_conv", TORCH_BOX(&deform_kernel_conv));
  m.impl("deform_kernel_conv_backward", TORCH_BOX(&deform_kernel_conv_backward));
}

}  // namespace dk
