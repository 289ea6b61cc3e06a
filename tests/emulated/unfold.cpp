// The kernels of unfold_columns, compiled for the emulator on the host, as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/scope_unfold/cuda_kernels.h"

#if !defined(DK_UNFOLD_LIBRARY)
#define DK_UNFOLD_LIBRARY dk_bench_emulated_unfold
#endif
// Macros of torch's take the name as it stands.
#define DK_UNFOLD_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DK_UNFOLD_IMPLEMENT(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CPU, m)

namespace dk {

DK_UNFOLD_DEFINE(DK_UNFOLD_LIBRARY, m) {
  m.def(
      "unfold_columns(Tensor input, Tensor? data_offset, Tensor? kernel_offset, int[] kernel_size, int[] scope, "
      "int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, Tensor(a!) columns) -> ()");
  m.def(
      "unfold_columns_backward(Tensor grad_columns, Tensor input, Tensor? data_offset, Tensor? kernel_offset, "
      "int[] kernel_size, int[] scope, int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, "
      "bool deterministic, bool warn_only, Tensor(a!)? grad_input, Tensor(b!)? grad_data_offset, "
      "Tensor(c!)? grad_kernel_offset) -> ()");
}

DK_UNFOLD_IMPLEMENT(DK_UNFOLD_LIBRARY, m) {
  m.impl("unfold_columns", TORCH_BOX(&unfold_columns<UnfoldKernels>));
  m.impl("unfold_columns_backward", TORCH_BOX(&unfold_columns_backward<UnfoldKernels>));
}

}  // namespace dk
