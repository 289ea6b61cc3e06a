// unfold_columns on any device: its arguments, checked, and its entries. It writes a piece of
//   Z[n, c, s, p] = sum over k of B_k[n, p, s] x_k[n, c, p],
// what all taps k read, spread over the scope's samples s: times the weight it is a deformable kernel's convolution.
#pragma once

#include "../common/arguments.h"

namespace dk {

// Positions first to first + count of (N, Hout, Wout), row-major, of a call with checked arguments; and on CUDA the
// stream it runs on.
struct DK_HIDDEN UnfoldOperator {
  Geometry g;
  int64_t groups, first, count;
  Tensor input;
  OptionalTensor data_offset, kernel_offset;
  void* stream = nullptr;
};

// What the backward pass adds to or writes; what is not there is not wanted.
struct DK_HIDDEN UnfoldGradients {
  OptionalTensor input, data_offset, kernel_offset;
};

// Gradients are as wide as sums are.
inline ScalarType sum_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype_and_device(const char* name, const Tensor& t, ScalarType type, const Tensor& input) {
  if (t.scalar_type() != type) fail(name, ": expected dtype ", dtype_text(type), ", got ", dtype_text(t.scalar_type()));
  check_device(name, t, input);
}

inline void check_columns(const char* name, const Tensor& columns, ScalarType type, const Tensor& input,
                          const Geometry& g, int64_t groups, int64_t first) {
  const int64_t samples = g.scope_h * g.scope_w, positions = g.batch * g.out_height * g.out_width;
  if (samples > INT32_MAX) fail("scope: more than 2^31 samples, got (", g.scope_h, ", ", g.scope_w, ")");
  if (groups < 1 || g.channels % groups)
    fail("groups: expected a divisor of the ", g.channels, " channels of input, got ", groups);
  const int64_t length = samples * (g.channels / groups);
  if (columns.dim() != 3 || columns.size(0) != groups || columns.size(2) != length || !columns.is_contiguous())
    fail(name, ": expected contiguous (groups, positions, Sh Sw C / groups) = (", groups, ", any, ", length,
         "), got shape ", shape_text(columns));
  if (first < 0 || first > positions || columns.size(1) > positions - first)
    fail("first: expected ", columns.size(1), " positions from it on among N Hout Wout = ", positions, ", got ", first);
  check_dtype_and_device(name, columns, type, input);
}

inline UnfoldOperator check_unfold(const char* name, const Tensor& columns, ScalarType type, const Tensor& input,
                                   const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
                                   const Pair& kernel_size, const Pair& scope, const Pair& stride, const Pair& padding,
                                   const Pair& dilation, bool clip, int64_t groups, int64_t first) {
  check_input(input);
  const Geometry g = check_geometry(input, scope, kernel_size, stride, padding, dilation, clip);
  check_offset("data_offset", data_offset, input, g);
  check_offset("kernel_offset", kernel_offset, input, g);
  check_columns(name, columns, type, input, g, groups, first);
  return {g, groups, first, columns.size(1), input, data_offset, kernel_offset};
}

// Pixels one after the other, each of adjacent channels.
inline bool is_packed_channels_last(const Tensor& t) {
  if (t.numel() == 0) return true;
  int64_t step = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != step) return false;
    step *= t.size(d);
  }
  return true;
}

inline void check_unfold_gradients(const UnfoldOperator& op, const UnfoldGradients& to) {
  const ScalarType type = sum_type(op.input);
  if (to.input) {
    if (to.input->dim() != 4 || sizes_of(*to.input) != sizes_of(op.input) || !is_packed_channels_last(*to.input))
      fail("grad_input: expected input's shape ", shape_text(op.input), " in channels_last, got ",
           shape_text(*to.input));
    check_dtype_and_device("grad_input", *to.input, type, op.input);
  }
  const auto check = [&](const char* name, const OptionalTensor& t, const OptionalTensor& offset) {
    if (!t) return;
    if (!offset) fail(name, ": expected None, as the offset is, got shape ", shape_text(*t));
    if (sizes_of(*t) != sizes_of(*offset))
      fail(name, ": expected the offset's shape ", shape_text(*offset), ", got ", shape_text(*t));
    check_dtype_and_device(name, *t, type, op.input);
  };
  check("grad_data_offset", to.data_offset, op.data_offset);
  check("grad_kernel_offset", to.kernel_offset, op.kernel_offset);
}

// The entries of the two operators on a device, which computes by
//   static ScalarType columns_type(const Tensor& input);
//   static void forward(UnfoldOperator op, Tensor& columns);
//   static void backward(UnfoldOperator op, const Tensor& grad_columns, UnfoldGradients& gradients, Determinism);
template <class Device>
void unfold_columns(const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
                    const Pair& kernel_size, const Pair& scope, const Pair& stride, const Pair& padding,
                    const Pair& dilation, bool clip, int64_t groups, int64_t first, Tensor columns) {
  const UnfoldOperator op =
      check_unfold("columns", columns, Device::columns_type(input), input, data_offset, kernel_offset, kernel_size,
                   scope, stride, padding, dilation, clip, groups, first);
  if (columns.numel() != 0) Device::forward(op, columns);
}

template <class Device>
void unfold_columns_backward(const Tensor& grad_columns, const Tensor& input, const OptionalTensor& data_offset,
                             const OptionalTensor& kernel_offset, const Pair& kernel_size, const Pair& scope,
                             const Pair& stride, const Pair& padding, const Pair& dilation, bool clip, int64_t groups,
                             int64_t first, bool deterministic, bool warn_only, const OptionalTensor& grad_input,
                             const OptionalTensor& grad_data_offset, const OptionalTensor& grad_kernel_offset) {
  const UnfoldOperator op =
      check_unfold("grad_columns", grad_columns, Device::columns_type(input), input, data_offset, kernel_offset,
                   kernel_size, scope, stride, padding, dilation, clip, groups, first);
  UnfoldGradients gradients{grad_input, grad_data_offset, grad_kernel_offset};
  check_unfold_gradients(op, gradients);
  if (op.count && (grad_input || grad_data_offset || grad_kernel_offset))
    Device::backward(op, grad_columns, gradients, Determinism{deterministic, warn_only});
}

}  // namespace dk
