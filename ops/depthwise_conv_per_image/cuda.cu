// depthwise_conv_per_image on CUDA.
#include "../common/cuda_call.h"
#include "cuda_kernels.h"

namespace dk {
namespace {

struct Cuda {
  static void forward(PerImageOperator op, Tensor& output) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    PerImageKernels::forward(op, output);
  }

  static void backward(PerImageOperator op, const Tensor& grad, PerImageGradients& gradients, const Mask& wanted) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    PerImageKernels::backward(op, grad, gradients, wanted);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("depthwise_conv_per_image", TORCH_BOX(&depthwise_conv_per_image<Cuda>));
  m.impl("depthwise_conv_per_image_backward", TORCH_BOX(&depthwise_conv_per_image_backward<Cuda>));
}

}  // namespace dk
