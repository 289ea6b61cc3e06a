// depthwise_conv_per_image on CUDA: checks a call and starts its kernels.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "per_image_kernels.h"

namespace dk {
namespace {

void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

Tensor depthwise_conv_per_image(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                                const Pair& dilation) {
  const Geometry g = check_per_image(input, weight, stride, padding, dilation);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return per_image_forward(g, input, weight, current_stream(input));
}

PerImageGradients depthwise_conv_per_image_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
    const Pair& dilation, bool /*deterministic: always*/, bool /*warn_only*/, const Mask& output_mask) {
  const Geometry g = check_per_image(input, weight, stride, padding, dilation);
  check_gradient(grad, input, g);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return per_image_backward(g, grad, input, weight, output_mask, current_stream(input));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("depthwise_conv_per_image", TORCH_BOX(&depthwise_conv_per_image));
  m.impl("depthwise_conv_per_image_backward", TORCH_BOX(&depthwise_conv_per_image_backward));
}

}  // namespace dk
