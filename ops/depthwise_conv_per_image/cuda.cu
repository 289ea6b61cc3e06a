// depthwise_conv_per_image on CUDA.
#include "../common/cuda_call.h"
#include "cuda_kernels.h"

namespace dk {

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("depthwise_conv_per_image", TORCH_BOX(&depthwise_conv_per_image<Cuda<PerImageKernels>>));
  m.impl("depthwise_conv_per_image_backward", TORCH_BOX(&depthwise_conv_per_image_backward<Cuda<PerImageKernels>>));
}

}  // namespace dk
