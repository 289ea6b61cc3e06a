// deform_roi_pool on CUDA: checks a call and starts its kernels.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "roi_kernels.h"

namespace dk {
namespace {

RoiCall make_call(const RoiGeometry& g, const Tensor& input, const Tensor& rois, const OptionalTensor& offset,
                  const OptionalTensor& mask) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(input.get_device_index(), &stream));
  return {g, input, rois, offset, mask, stream};
}

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const OptionalTensor& offset, const OptionalTensor& mask,
                       const Pair& output_size, double spatial_scale, int64_t sampling_ratio, double gamma, bool aligned,
                       bool position_sensitive) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma,
                                            aligned, position_sensitive);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = empty_in_format_of(input, {g.rois, g.out_channels, g.out_height, g.out_width});
  if (output.numel() == 0) return output;
  const RoiCall call = make_call(g, input, rois, offset, mask);
  switch (input.scalar_type()) {
    case ScalarType::Float: launch_roi_forward<float, float>(call, output); break;
    case ScalarType::Double: launch_roi_forward<double, double>(call, output); break;
    case ScalarType::Half: launch_roi_forward<torch::headeronly::Half, float>(call, output); break;
    default: launch_roi_forward<torch::headeronly::BFloat16, float>(call, output);
  }
  return output;
}

RoiGradients deform_roi_pool_backward(
    const Tensor& grad, const Tensor& input, const Tensor& rois, const OptionalTensor& offset, const OptionalTensor& mask,
    const Pair& output_size, double spatial_scale, int64_t sampling_ratio, double gamma, bool aligned,
    bool position_sensitive, bool deterministic, bool warn_only, const Mask& output_mask) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma,
                                            aligned, position_sensitive);
  check_roi_gradient(grad, input, g);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  RoiGradients sums = roi_sums(input, offset, mask, output_mask);
  if (grad.numel() != 0) {
    if (deterministic) alert_roi_not_deterministic(output_mask, warn_only);
    const RoiCall call = make_call(g, input, rois, offset, mask);
    switch (input.scalar_type()) {
      case ScalarType::Float: launch_roi_backward<float, float>(call, grad, output_mask, sums); break;
      case ScalarType::Double: launch_roi_backward<double, double>(call, grad, output_mask, sums); break;
      case ScalarType::Half: launch_roi_backward<torch::headeronly::Half, float>(call, grad, output_mask, sums); break;
      default: launch_roi_backward<torch::headeronly::BFloat16, float>(call, grad, output_mask, sums);
    }
  }
  return roi_gradients(sums, input, offset, mask, output_mask);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward));
}

}  // namespace dk
