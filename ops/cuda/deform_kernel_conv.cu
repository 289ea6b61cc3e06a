// deform_kernel_conv on CUDA: checks a call and sends it the fast way or the plain one. NaN offsets give NaN: raising
// would cost a synchronisation.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "fast_limits.h"
#include "paths.h"

namespace dk {
namespace {

void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

// Calls f with a zero of the stored type.
template <class F>
void with_stored_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(torch::headeronly::Half());
    default: return f(torch::headeronly::BFloat16());
  }
}

Tensor deform_kernel_conv(
    const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset, const Tensor& weight,
    const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation, bool clip) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() == 0) return output;
  const Operator op{g, input, data_offset, kernel_offset, weight, current_stream(input)};
  if (fits_fast(g, input.scalar_type(), data_offset, kernel_offset, weight))
    with_stored_type(input.scalar_type(), [&](auto zero) { fast_forward<decltype(zero)>(op, output); });
  else
    plain_forward(op, output);
  return output;
}

Gradients deform_kernel_conv_backward(
    const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
    const Tensor& weight, const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation, bool clip,
    bool deterministic, bool warn_only, const Mask& output_mask) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  check_gradient(grad, input, g);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Gradients gradients = empty_gradients(input, data_offset, kernel_offset, weight, output_mask);
  if (are_trivial(grad, gradients, output_mask)) return gradients;
  const Operator op{g, input, data_offset, kernel_offset, weight, current_stream(input)};
  if (fits_fast(g, input.scalar_type(), data_offset, kernel_offset, weight)) {
    with_stored_type(input.scalar_type(), [&](auto zero) {
      fast_backward<decltype(zero)>(op, grad, gradients, output_mask, deterministic);
    });
  } else {
    if (deterministic && (output_mask[0] || output_mask[3])) {  // what is added up by atomics
      alert_not_deterministic(
          warn_only,
          joined("deform_kernel_conv_backward: no deterministic algorithm on CUDA for ", dtype_text(input.scalar_type()),
                 ", scope (", g.scope_h, ", ", g.scope_w, ") and input (", g.height, ", ", g.width, "), or for offsets ",
                 "that reach over 2^31 values; unset torch.use_deterministic_algorithms or use the CPU"));
    }
    plain_backward(op, grad, gradients, output_mask);
  }
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CUDA, m) {
  m.impl("deform_kernel_conv", TORCH_BOX(&deform_kernel_conv));
  m.impl("deform_kernel_conv_backward", TORCH_BOX(&deform_kernel_conv_backward));
}

}  // namespace dk
