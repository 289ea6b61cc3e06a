// deform_roi_pool on CUDA.
#include "../common/cuda_call.h"
#include "cuda_kernels.h"

namespace dk {

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool<Cuda<RoiKernels>>));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward<Cuda<RoiKernels>>));
}

}  // namespace dk
