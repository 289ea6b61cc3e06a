// unfold_columns on the CPU, and the schemas.
//
// Work is cut by the sizes alone, never by the number of threads, and what several tasks add to is added to in a fixed
// order, so results are the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include "cpu_passes.h"

namespace dk {
namespace {

struct Cpu {
  static ScalarType columns_type(const Tensor& input) { return sum_type(input); }

  static void forward(const UnfoldOperator& op, Tensor& columns) {
    (columns.scalar_type() == ScalarType::Double ? unfold<double> : unfold<float>)(op, columns);
  }

  static void backward(const UnfoldOperator& op, const Tensor& grad, UnfoldGradients& to, Determinism) {
    if (grad.scalar_type() == ScalarType::Double)
      UnfoldBackward<double>(op, grad, to).run();
    else
      UnfoldBackward<float>(op, grad, to).run();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  // Both work on positions first to first + count of (N, Hout, Wout). Columns are (groups, count, Sh Sw C / groups),
  // contiguous, the channels fastest; on the CPU float32, or float64 of float64 input, on CUDA of input's dtype.
  m.def(
      "unfold_columns(Tensor input, Tensor? data_offset, Tensor? kernel_offset, int[] kernel_size, int[] scope, "
      "int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, Tensor(a!) columns) -> ()");
  // Adds to grad_input, in channels_last, and writes the offsets' gradients of its positions, on CUDA contiguous; all
  // float32, or float64. What is None is not wanted.
  m.def(
      "unfold_columns_backward(Tensor grad_columns, Tensor input, Tensor? data_offset, Tensor? kernel_offset, "
      "int[] kernel_size, int[] scope, int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, "
      "bool deterministic, bool warn_only, Tensor(a!)? grad_input, Tensor(b!)? grad_data_offset, "
      "Tensor(c!)? grad_kernel_offset) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("unfold_columns", TORCH_BOX(&unfold_columns<Cpu>));
  m.impl("unfold_columns_backward", TORCH_BOX((&unfold_columns_backward<Cpu>)));
}

}  // namespace dk
