// The kernels of unfold_columns on a stream, for the entries of op.h. A NaN offset gives NaN: raising would cost a
// synchronisation.
#pragma once

#include "cuda_forward.h"
#include "cuda_offset_gradients.h"

namespace dk {

struct UnfoldKernels {
  static ScalarType columns_type(const Tensor& input) { return input.scalar_type(); }

  static void forward(const UnfoldOperator& op, Tensor& columns) {
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      using T = decltype(t);
      using A = decltype(a);
      (op.data_offset ? unfold::run_forward<T, A, true> : unfold::run_forward<T, A, false>)(op, columns);
    });
  }

  static void backward(const UnfoldOperator& op, const Tensor& grad, UnfoldGradients& to, Determinism deterministic) {
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      using T = decltype(t);
      using A = decltype(a);
      if (to.input && op.data_offset) unfold::run_scatter<T, A>(op, grad, *to.input, deterministic.asked);
      if (to.input && !op.data_offset) unfold::run_gather<T, A>(op, grad, *to.input);
      if (to.data_offset || to.kernel_offset)
        (op.data_offset ? unfold::run_offset_gradients<T, A, true>
                        : unfold::run_offset_gradients<T, A, false>)(op, grad, to);
    });
  }
};

}  // namespace dk
