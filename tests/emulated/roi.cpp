// The kernels of deform_roi_pool, compiled for the emulator on the host and registered as operators of their own.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../ops/cuda/roi_kernels.h"

namespace dk {
namespace {

template <class F>
void with_types(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float: return f(float(), float());
    case ScalarType::Double: return f(double(), double());
    case ScalarType::Half: return f(torch::headeronly::Half(), float());
    default: return f(torch::headeronly::BFloat16(), float());
  }
}

Tensor forward(const Tensor& input, const Tensor& rois, const OptionalTensor& offset, const OptionalTensor& mask,
               const Pair& output_size, double spatial_scale, int64_t sampling_ratio, double gamma, bool aligned,
               bool position_sensitive) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma,
                                            aligned, position_sensitive);
  Tensor output = empty_in_format_of(input, {g.rois, g.out_channels, g.out_height, g.out_width});
  const RoiCall call(g, input, rois, offset, mask, nullptr);
  with_types(input.scalar_type(), [&](auto t, auto a) { launch_roi_forward<decltype(t), decltype(a)>(call, output); });
  return output;
}

RoiGradients backward(const Tensor& grad, const Tensor& input, const Tensor& rois, const OptionalTensor& offset,
                      const OptionalTensor& mask, const Pair& output_size, double spatial_scale, int64_t sampling_ratio,
                      double gamma, bool aligned, bool position_sensitive, bool deterministic, bool warn_only,
                      const Mask& output_mask) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma,
                                            aligned, position_sensitive);
  RoiGradients sums = roi_sums(input, offset, mask, output_mask);
  if (deterministic) alert_roi_not_deterministic(output_mask, warn_only);
  const RoiCall call(g, input, rois, offset, mask, nullptr);
  with_types(input.scalar_type(), [&](auto t, auto a) {
    launch_roi_backward<decltype(t), decltype(a)>(call, grad, output_mask, sums);
  });
  return roi_gradients(sums, input, offset, mask, output_mask);
}

}  // namespace

STABLE_TORCH_LIBRARY(dk_bench_emulated_roi, m) {
  m.def(
      "forward(Tensor input, Tensor rois, Tensor? offset, Tensor? mask, int[] output_size, float spatial_scale, "
      "int sampling_ratio, float gamma, bool aligned, bool position_sensitive) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor rois, Tensor? offset, Tensor? mask, int[] output_size, "
      "float spatial_scale, int sampling_ratio, float gamma, bool aligned, bool position_sensitive, "
      "bool deterministic=False, bool warn_only=False, bool[3] output_mask=[True, True, True]) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench_emulated_roi, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}

}  // namespace dk
