// deform_roi_pool on CUDA.
#include "../common/cuda_call.h"
#include "cuda_kernels.h"

namespace dk {
namespace {

struct Cuda {
  static void forward(RoiOperator op, Tensor& output) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    RoiKernels::forward(op, output);
  }

  static void backward(RoiOperator op, const Tensor& grad, RoiGradients& sums, const Mask& wanted,
                       Determinism deterministic) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    RoiKernels::backward(op, grad, sums, wanted, deterministic);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool<Cuda>));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward<Cuda>));
}

}  // namespace dk
