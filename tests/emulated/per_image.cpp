// The kernels of depthwise_conv_per_image, compiled for the emulator on the host, as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/depthwise_conv_per_image/cuda_kernels.h"

#if !defined(DK_PER_IMAGE_LIBRARY)
#define DK_PER_IMAGE_LIBRARY dk_bench_emulated_per_image
#endif
// Macros of torch's take the name as it stands.
#define DK_PER_IMAGE_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DK_PER_IMAGE_IMPLEMENT(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CPU, m)

namespace dk {

DK_PER_IMAGE_DEFINE(DK_PER_IMAGE_LIBRARY, m) {
  m.def("forward(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, "
      "bool deterministic=True, bool warn_only=False, bool[2] output_mask=[True, True]) -> (Tensor, Tensor)");
  m.def("has_vectors(Tensor tensor) -> bool");
}

DK_PER_IMAGE_IMPLEMENT(DK_PER_IMAGE_LIBRARY, m) {
  m.impl("forward", TORCH_BOX(&depthwise_conv_per_image<PerImageKernels>));
  m.impl("backward", TORCH_BOX(&depthwise_conv_per_image_backward<PerImageKernels>));
  m.impl("has_vectors", TORCH_BOX(&has_vectors));
}

}  // namespace dk
