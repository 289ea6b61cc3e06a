// deform_kernel_conv on the CPU: deformable kernels and deformable convolution, depthwise. The schemas are here too.
//
// Work is cut by the sizes alone, never by the number of threads, and sums over pieces are taken in a fixed order, so
// results are the same bits for any number of threads. Nothing of the size taps x positions x channels is stored.
#include <torch/csrc/stable/library.h>

#include "cpu_backward.h"
#include "cpu_forward.h"

namespace dk {
namespace {

struct Cpu {
  static void forward(const Operator& op, Tensor& output) {
    const bool wide = op.input.scalar_type() == ScalarType::Double;
    (wide ? dk::forward<double> : dk::forward<float>)(op, output);
  }

  static void backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted, Determinism) {
    const bool wide = op.input.scalar_type() == ScalarType::Double;
    (wide ? dk::backward<double> : dk::backward<float>)(op, grad, gradients, wanted);
  }
};

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
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("deform_kernel_conv", TORCH_BOX(&deform_kernel_conv<Cpu>));
  m.impl("deform_kernel_conv_backward", TORCH_BOX(&deform_kernel_conv_backward<Cpu>));
}

}  // namespace dk
