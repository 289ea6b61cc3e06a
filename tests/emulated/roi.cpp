// The kernels of deform_roi_pool, compiled for the emulator on the host and registered as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/deform_roi_pool/cuda_kernels.h"

namespace dk {

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
  m.impl("forward", TORCH_BOX(&deform_roi_pool<RoiKernels>));
  m.impl("backward", TORCH_BOX(&deform_roi_pool_backward<RoiKernels>));
}

}  // namespace dk
