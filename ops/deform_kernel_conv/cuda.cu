// deform_kernel_conv on CUDA: sends a call the fast way or the plain one. NaN offsets give NaN: raising
// would cost a synchronisation.
#include "../common/cuda_call.h"
#include "../common/old_glibc.h"
#include "cuda_fast_limits.h"
#include "cuda_paths.h"

namespace dk {
namespace {

bool fits_fast(const Operator& op) {
  return fits_fast(op.g, op.input.scalar_type(), op.data_offset, op.kernel_offset, op.weight);
}

void alert_of_plain_path(const Operator& op, bool warn_only) {
  const Geometry& g = op.g;
  alert_not_deterministic(
      warn_only,
      joined("deform_kernel_conv_backward: no deterministic algorithm on CUDA for ", dtype_text(op.input.scalar_type()),
             ", scope (", g.scope_h, ", ", g.scope_w, ") and input (", g.height, ", ", g.width, "), or for offsets ",
             "that reach over 2^31 values; unset torch.use_deterministic_algorithms or use the CPU"));
}

struct Kernels {
  static void forward(const Operator& op, Tensor& output) {
    if (fits_fast(op))
      with_stored_type(op.input.scalar_type(), [&](auto zero) { fast_forward<decltype(zero)>(op, output); });
    else
      plain_forward(op, output);
  }

  static void backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted,
                       Determinism deterministic) {
    if (fits_fast(op)) {
      with_stored_type(op.input.scalar_type(), [&](auto zero) {
        fast_backward<decltype(zero)>(op, grad, gradients, wanted, deterministic.asked);
      });
    } else {
      if (deterministic.asked && (wanted[0] || wanted[3]))  // what is added up by atomics
        alert_of_plain_path(op, deterministic.warn_only);
      plain_backward(op, grad, gradients, wanted);
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("deform_kernel_conv", TORCH_BOX(&deform_kernel_conv<Cuda<Kernels>>));
  m.impl("deform_kernel_conv_backward", TORCH_BOX(&deform_kernel_conv_backward<Cuda<Kernels>>));
}

}  // namespace dk
