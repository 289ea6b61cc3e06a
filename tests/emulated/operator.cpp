// The CUDA operator's kernels, compiled for the emulator on the host and registered as operators of their own.
#include <torch/csrc/stable/library.h>

#include "../../ops/cuda/fast.h"

#if !defined(DK_LIBRARY)
#define DK_LIBRARY dk_bench_emulated
#endif
// Macros of torch's take the name as it stands.
#define DK_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DK_IMPLEMENT(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

namespace dk {
namespace {

template <class F>
void with_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(torch::headeronly::Half());
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16());
    default: fail("input: the emulated path has no ", dtype_text(type));
  }
}

Tensor forward(const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset, const Tensor& weight,
               const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation, bool clip) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  if (!fits_fast(g, input.scalar_type(), data_offset, kernel_offset, weight)) fail("not a call for this path");
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() == 0) return output;
  with_type(input.scalar_type(), [&](auto zero) {
    fast_forward<decltype(zero)>({g, input, data_offset, kernel_offset, weight, nullptr}, output);
  });
  return output;
}

Gradients backward(const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset,
                   const OptionalTensor& kernel_offset, const Tensor& weight, const Pair& kernel_size, const Pair& stride,
                   const Pair& padding, const Pair& dilation, bool clip, bool deterministic, const Mask& output_mask) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  check_gradient(grad, input, g);
  Gradients gradients = empty_gradients(input, data_offset, kernel_offset, weight, output_mask);
  if (are_trivial(grad, gradients, output_mask)) return gradients;
  with_type(input.scalar_type(), [&](auto zero) {
    fast_backward<decltype(zero)>(
        {g, input, data_offset, kernel_offset, weight, nullptr}, grad, gradients, output_mask, deterministic);
  });
  return gradients;
}

// What the device is said to hold of every kernel at a time.
void set_resident_blocks(int64_t count) { device::resident_blocks() = count; }

}  // namespace

DK_DEFINE(DK_LIBRARY, m) {
  m.def("set_resident_blocks(int count) -> ()");
  m.def(
      "forward(Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, bool clip) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, bool clip, bool deterministic, "
      "bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)");
}

DK_IMPLEMENT(DK_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("set_resident_blocks", TORCH_BOX(&set_resident_blocks));
}

DK_IMPLEMENT(DK_LIBRARY, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}

}  // namespace dk
