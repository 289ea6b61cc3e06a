// A convolution with few outputs on the CPU, and the gradient of its weight: float32, channels_last, channels in
// multiples of 16. What else there is, and the gradient of the input, is torch's.
//
// Work is cut by the sizes alone and sums are taken in a fixed order: the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/cpu_staging.h"
#include "cpu_narrow.h"

namespace dk {
namespace {

constexpr int64_t kPiece = 128;  // positions that one thread takes at a time
constexpr int64_t kGroups = 8;   // of images: as many partial sums of the weight's gradient are kept

// A view as the kernels take it: the step along a size of one is any number, and is that of packed pixels here.
View plane(const Tensor& t) {
  View v(t);
  if (t.size(1) == 1) v.c = 1;
  if (v.width == 1) v.w = v.height == 1 ? t.size(1) : v.h;
  if (v.height == 1) v.h = v.w * v.width;
  return v;
}

void check_plane(const char* name, const Tensor& t) {
  const bool lies_well = t.numel() == 0 || plane(t).direct<float>(0, 0);
  if (!t.is_cpu() || t.scalar_type() != ScalarType::Float || !lies_well)
    fail(name, ": expected float32 of the CPU in channels_last, got shape ", shape_text(t), " of ",
         dtype_text(t.scalar_type()));
}

Geometry check_narrow(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                      const Pair& dilation) {
  check_input(input);
  check_plane("input", input);
  if (input.size(1) % kNarrowChannels) fail("input: expected channels in multiples of 16, got ", input.size(1));
  if (weight.dim() != 4 || weight.size(1) != input.size(1) || weight.size(2) < 1 || weight.size(3) < 1)
    fail("weight: expected (Cout, C, Kh, Kw) with C = ", input.size(1),
         " channels as in input and Kh, Kw >= 1, got shape ", shape_text(weight));
  check_like("weight", weight, input, false);
  return check_geometry(input, scope_of(weight), scope_of(weight), stride, padding, dilation, true);
}

// The weight as the forward kernel reads it: see Narrow.
void pack(const View& weight, const Geometry& g, int64_t outputs, int64_t lanes, float* to) {
  const int64_t blocks = (outputs + kNarrowOutputs - 1) / kNarrowOutputs;
  std::fill_n(to, blocks * kNarrowOutputs * g.taps() * g.channels, 0.0f);
  const float* from = static_cast<const float*>(weight.data);
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t tap = 0; tap < g.taps(); ++tap)
      for (int64_t c = 0; c < g.channels; ++c) {
        const int64_t vector = (o / kNarrowOutputs * g.taps() + tap) * (g.channels / lanes) + c / lanes;
        to[(vector * kNarrowOutputs + o % kNarrowOutputs) * lanes + c % lanes] =
            from[o * weight.n + c * weight.c + tap / g.kernel_w * weight.h + tap % g.kernel_w * weight.w];
      }
}

void forward(const Geometry& g, const View& input, const View& weight, const OptionalTensor& bias, const View& output,
             int64_t outputs) {
  const int64_t padded = (outputs + kNarrowOutputs - 1) / kNarrowOutputs * kNarrowOutputs;
  const Buffer<float> packed(padded * g.taps() * g.channels), zeros(g.channels), biases(padded);
  pack(weight, g, outputs, narrow_kernels().lanes, packed.get());
  std::fill_n(zeros.get(), g.channels, 0.0f);
  std::fill_n(biases.get(), padded, 0.0f);
  for (int64_t o = 0; bias && o < outputs; ++o)
    biases.get()[o] = static_cast<const float*>(bias->data_ptr())[o * bias->stride(0)];
  const int64_t positions = g.out_height * g.out_width, pieces = (positions + kPiece - 1) / kPiece;
  torch::stable::parallel_for(0, g.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    Narrow n{};
    n.g = &g, n.outputs = outputs, n.x_step = input.w, n.out_step = output.w;
    n.weight = packed.get(), n.bias = biases.get(), n.zeros = zeros.get();
    for (int64_t i = begin; i < end; ++i) {
      n.begin = i % pieces * kPiece, n.end = std::min(n.begin + kPiece, positions);
      n.x = input.direct<float>(i / pieces, 0), n.out = output.direct<float>(i / pieces, 0);
      narrow_kernels().forward(n);
    }
  });
}

void weight_gradient(const Geometry& g, const View& grad, const View& input, const View& to, int64_t outputs) {
  const int64_t blocks = g.channels / kNarrowChannels, groups = std::min(kGroups, g.batch);
  const int64_t size = g.taps() * outputs * kNarrowChannels;  // of one block of channels
  const Buffer<float> sums(groups * blocks * size);
  torch::stable::parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
    Narrow n{};
    n.g = &g, n.outputs = outputs, n.x_step = input.w, n.grad_step = grad.w;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / blocks;
      n.channel = i % blocks * kNarrowChannels, n.grad_weight = sums.get() + i * size;
      std::fill_n(n.grad_weight, size, 0.0f);
      for (int64_t image = group; image < g.batch; image += groups) {
        n.x = input.direct<float>(image, 0), n.grad = grad.direct<float>(image, 0);
        narrow_kernels().weight_gradient(n);
      }
    }
  });
  float* result = static_cast<float*>(to.data);
  for (int64_t group = 1; group < groups; ++group)
    for (int64_t i = 0; i < blocks * size; ++i) sums.get()[i] += sums.get()[group * blocks * size + i];
  for (int64_t c = 0; c < g.channels; ++c)
    for (int64_t tap = 0; tap < g.taps(); ++tap)
      for (int64_t o = 0; o < outputs; ++o)
        result[o * to.n + c * to.c + tap / g.kernel_w * to.h + tap % g.kernel_w * to.w] =
            sums.get()[c / kNarrowChannels * size + (tap * outputs + o) * kNarrowChannels + c % kNarrowChannels];
}

Tensor narrow_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Pair& stride,
                   const Pair& padding, const Pair& dilation) {
  const Geometry g = check_narrow(input, weight, stride, padding, dilation);
  const int64_t outputs = weight.size(0);
  if (bias) {
    if (bias->dim() != 1 || bias->size(0) != outputs)
      fail("bias: expected (Cout,) = (", outputs, "), got ", shape_text(*bias));
    check_like("bias", *bias, input, false);
  }
  Tensor output = torch::stable::empty({g.batch, outputs, g.out_height, g.out_width}, input.scalar_type(), std::nullopt,
                                       input.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (output.numel() != 0) forward(g, plane(input), View(weight), bias, plane(output), outputs);
  return output;
}

Tensor narrow_conv_weight_gradient(const Tensor& grad, const Tensor& input, const Tensor& weight, const Pair& stride,
                                   const Pair& padding, const Pair& dilation) {
  const Geometry g = check_narrow(input, weight, stride, padding, dilation);
  const Pair expected{g.batch, weight.size(0), g.out_height, g.out_width};
  if (grad.dim() != 4 || sizes_of(grad) != expected) fail("grad: expected the output's shape, got ", shape_text(grad));
  check_plane("grad", grad);
  Tensor result = empty_in_format_of(weight, sizes_of(weight));
  if (grad.numel() == 0)
    torch::stable::zero_(result);
  else
    weight_gradient(g, plane(grad), plane(input), View(result), weight.size(0));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  m.def(
      "narrow_conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "narrow_conv_weight_gradient(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, "
      "int[] dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("narrow_conv", TORCH_BOX(&narrow_conv));
  m.impl("narrow_conv_weight_gradient", TORCH_BOX(&narrow_conv_weight_gradient));
}

}  // namespace dk
