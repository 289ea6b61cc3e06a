// Arguments of a call: checks that operators share, sizes of a convolution, texts of errors, memory for results.
#pragma once

#include "host_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace dk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Pair = std::vector<int64_t>;  // (height, width)
using Mask = std::vector<bool>;     // which gradients are wanted, in the operands' order

// What holds tensors is no more visible outside of the library than these.
#define DK_HIDDEN __attribute__((visibility("hidden")))

// Texts are made without streams: where a compiler links the C++ library into ours, while torch has its own, a stream
// reads the locale of the one by the layout of the other, and crashes.
inline std::string as_text(const char* text) { return text; }
inline std::string as_text(const std::string& text) { return text; }
template <class Number>
std::enable_if_t<std::is_integral_v<Number>, std::string> as_text(Number number) {
  return std::to_string(number);
}
inline std::string as_text(double number) {  // six digits, without the zeros of std::to_string
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  return text;
}

template <class... Args>
std::string joined(const Args&... args) {
  return (std::string() + ... + as_text(args));
}

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw std::runtime_error(joined(args...));
}

// What torch.use_deterministic_algorithms asks of a computation that has no order: to be refused, or told of.
inline void alert_not_deterministic(bool warn_only, const std::string& message) {
  if (!warn_only) fail(message);
  aoti_torch_warn(__func__, __FILE__, __LINE__, message.c_str());
}

// Whether deterministic algorithms are asked for, and whether to warn alone where there are none.
struct Determinism {
  bool asked, warn_only;
};

inline void check_mask(const Mask& mask, size_t size) {
  if (mask.size() != size) fail("output_mask: expected ", size, " values, got ", mask.size());
}

struct Geometry {
  int64_t batch, channels, height, width;
  int64_t out_height, out_width;
  int64_t scope_h, scope_w, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool clip;

  DK_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
};

inline std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += joined(d ? ", " : "", t.size(d));
  return text + ")";
}

inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    default: return "a dtype that is not floating";
  }
}

inline bool is_16_bit(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

inline void check_pair(const char* name, const Pair& pair, int64_t low) {
  if (pair.size() != 2) fail(name, ": expected 2 values, got ", pair.size());
  // The upper bound keeps every product of sizes below far inside 64 bits.
  if (pair[0] < low || pair[1] < low || pair[0] > INT32_MAX || pair[1] > INT32_MAX)
    fail(name, ": expected values of at least ", low, ", got (", pair[0], ", ", pair[1], ")");
}

inline void check_device(const char* name, const Tensor& t, const Tensor& input) {
  if (t.is_cuda() != input.is_cuda() || t.is_cpu() != input.is_cpu() ||
      t.get_device_index() != input.get_device_index())
    fail(name, ": expected the device of input, got another one");
}

inline void check_like(const char* name, const Tensor& t, const Tensor& input, bool may_be_float) {
  const ScalarType type = t.scalar_type(), wanted = input.scalar_type();
  const bool also_float = may_be_float && is_16_bit(wanted);
  if (type != wanted && !(also_float && type == ScalarType::Float))
    fail(name, ": expected dtype ", dtype_text(wanted), also_float ? " or float32" : "", ", got ", dtype_text(type));
  check_device(name, t, input);
}

inline void check_input(const Tensor& input) {
  if (input.dim() != 4) fail("input: expected (N, C, H, W), got shape ", shape_text(input));
  if (input.size(2) < 1 || input.size(3) < 1) fail("input: expected H, W >= 1, got shape ", shape_text(input));
  const ScalarType type = input.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double && !is_16_bit(type))
    fail("input: expected a floating dtype, got ", dtype_text(type));
}

inline Pair scope_of(const Tensor& weight) { return {weight.size(2), weight.size(3)}; }

// The sizes of a convolution of a checked input, whose kernel is stored over a scope.
inline Geometry check_geometry(const Tensor& input, const Pair& scope, const Pair& kernel_size, const Pair& stride,
                               const Pair& padding, const Pair& dilation, bool clip) {
  check_pair("scope", scope, 1);
  check_pair("kernel_size", kernel_size, 1);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);

  Geometry g{};
  g.batch = input.size(0), g.channels = input.size(1), g.height = input.size(2), g.width = input.size(3);
  g.scope_h = scope[0], g.scope_w = scope[1];
  g.kernel_h = kernel_size[0], g.kernel_w = kernel_size[1];
  g.stride_h = stride[0], g.stride_w = stride[1], g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.clip = clip;
  const int64_t reach_h = g.dilation_h * (g.kernel_h - 1) + 1, reach_w = g.dilation_w * (g.kernel_w - 1) + 1;
  const int64_t padded_h = g.height + 2 * g.pad_h, padded_w = g.width + 2 * g.pad_w;
  if (padded_h < reach_h || padded_w < reach_w)
    fail("input: the padded size (", padded_h, ", ", padded_w, ") is smaller than the (", reach_h, ", ", reach_w,
         ") pixels that kernel_size with dilation reaches over");
  g.out_height = (padded_h - reach_h) / g.stride_h + 1;
  g.out_width = (padded_w - reach_w) / g.stride_w + 1;
  return g;
}

inline void check_offset(const char* name, const OptionalTensor& offset, const Tensor& input, const Geometry& g) {
  if (!offset) return;
  const Tensor& t = *offset;
  const bool fits = t.dim() == 4 && t.size(0) == g.batch && t.size(1) == 2 * g.taps() && t.size(2) == g.out_height &&
      t.size(3) == g.out_width;
  if (!fits)
    fail(name, ": expected shape (N, 2 Kh Kw, Hout, Wout) = (", g.batch, ", ", 2 * g.taps(), ", ", g.out_height, ", ",
         g.out_width, "), got ", shape_text(t));
  check_like(name, t, input, true);
}

// A new tensor in the memory format of `like`: channels_last where its channels lie side by side, else contiguous.
inline Tensor empty_in_format_of(const Tensor& like, const Pair& sizes) {
  const bool channels_last = !like.is_contiguous() && like.stride(1) == 1;
  return torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

inline void check_gradient(const Tensor& grad, const Tensor& input, const Geometry& g) {
  const bool fits = grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == g.channels &&
      grad.size(2) == g.out_height && grad.size(3) == g.out_width;
  if (!fits)
    fail("grad: expected shape (N, C, Hout, Wout) = (", g.batch, ", ", g.channels, ", ", g.out_height, ", ",
         g.out_width, "), got ", shape_text(grad));
  check_like("grad", grad, input, false);
}

inline Pair sizes_of(const Tensor& t) {
  Pair sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

// Whether the gradients need no computing: none is wanted, or nothing flows back, and then they are zero.
template <class Tensors>
bool are_trivial(const Tensor& grad, Tensors& gradients, const Mask& wanted) {
  if (std::find(wanted.begin(), wanted.end(), true) == wanted.end()) return true;
  if (grad.numel() != 0) return false;
  std::apply([](auto&... gradient) { (torch::stable::zero_(gradient), ...); }, gradients);
  return true;
}

}  // namespace dk
