// The kernels of depthwise_conv_per_image, compiled for the emulator on the host, as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/cuda/per_image_kernels.h"

#if !defined(DK_PER_IMAGE_LIBRARY)
#define DK_PER_IMAGE_LIBRARY dk_bench_emulated_per_image
#endif
// Macros of torch's take the name as it stands.
#define DK_PER_IMAGE_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DK_PER_IMAGE_IMPLEMENT(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CPU, m)

namespace dk {
namespace {

Tensor per_image_forward_emulated(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                                  const Pair& dilation) {
  return per_image_forward(check_per_image(input, weight, stride, padding, dilation), input, weight, nullptr);
}

PerImageGradients per_image_backward_emulated(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                              const Pair& stride, const Pair& padding, const Pair& dilation,
                                              const Mask& output_mask) {
  const Geometry g = check_per_image(input, weight, stride, padding, dilation);
  check_gradient(grad, input, g);
  return per_image_backward(g, grad, input, weight, output_mask, nullptr);
}

}  // namespace

DK_PER_IMAGE_DEFINE(DK_PER_IMAGE_LIBRARY, m) {
  m.def("forward(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, "
      "bool[2] output_mask=[True, True]) -> (Tensor, Tensor)");
  m.def("has_vectors(Tensor tensor) -> bool");
}

DK_PER_IMAGE_IMPLEMENT(DK_PER_IMAGE_LIBRARY, m) {
  m.impl("forward", TORCH_BOX(&per_image_forward_emulated));
  m.impl("backward", TORCH_BOX(&per_image_backward_emulated));
  m.impl("has_vectors", TORCH_BOX(&has_vectors));
}

}  // namespace dk
