// unfold_columns on CUDA.
#include "../common/cuda_call.h"
#include "cuda_kernels.h"

namespace dk {
namespace {

struct UnfoldOnCuda : Cuda<UnfoldKernels> {
  static ScalarType columns_type(const Tensor& input) { return UnfoldKernels::columns_type(input); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("unfold_columns", TORCH_BOX(&unfold_columns<UnfoldOnCuda>));
  m.impl("unfold_columns_backward", TORCH_BOX(&unfold_columns_backward<UnfoldOnCuda>));
}

}  // namespace dk
