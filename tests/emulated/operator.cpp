// The CUDA operator's kernels, compiled for the emulator on the host and registered as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/deform_kernel_conv/cuda_fast.h"

#if !defined(DK_LIBRARY)
#define DK_LIBRARY dk_bench_emulated
#endif
// Macros of torch's take the name as it stands.
#define DK_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DK_IMPLEMENT(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

namespace dk {
namespace {

struct Emulated {
  static void forward(const Operator& op, Tensor& output) {
    check(op);
    with_stored_type(op.input.scalar_type(), [&](auto zero) { fast_forward<decltype(zero)>(op, output); });
  }

  static void backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted,
                       Determinism deterministic) {
    check(op);
    with_stored_type(op.input.scalar_type(), [&](auto zero) {
      fast_backward<decltype(zero)>(op, grad, gradients, wanted, deterministic.asked);
    });
  }

  static void check(const Operator& op) {
    if (!fits_fast(op.g, op.input.scalar_type(), op.data_offset, op.kernel_offset, op.weight))
      fail("not a call for this path");
  }
};

// What the device is said to hold of every kernel at a time.
void set_resident_blocks(int64_t count) { device::resident_blocks() = count; }

}  // namespace

DK_DEFINE(DK_LIBRARY, m) {
  m.def("set_resident_blocks(int count) -> ()");
  m.def(
      "forward(Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, bool clip) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool clip, bool deterministic, "
      "bool warn_only=False, bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)");
}

DK_IMPLEMENT(DK_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("set_resident_blocks", TORCH_BOX(&set_resident_blocks));
}

DK_IMPLEMENT(DK_LIBRARY, CPU, m) {
  m.impl("forward", TORCH_BOX(&deform_kernel_conv<Emulated>));
  m.impl("backward", TORCH_BOX(&deform_kernel_conv_backward<Emulated>));
}

}  // namespace dk
