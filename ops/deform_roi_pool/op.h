// deform_roi_pool on any device: boxes, bins and samples; arguments, checked, memory for results, and the entries.
//
// As in RoIAlign, a bin is sampled on a grid of gh x gw points and averaged. A box moves by gamma * its size * offset.
#pragma once

#include <cmath>

#include "../common/arguments.h"

namespace dk {

struct RoiGeometry {
  int64_t batch, channels, height, width;
  int64_t rois, out_channels, out_height, out_width;
  int64_t groups;  // of output channels that share an offset
  double spatial_scale, gamma;
  int64_t sampling_ratio;  // 0: a sample a pixel, that is ceil(bin) a bin
  bool aligned, position_sensitive;

  DK_HOST_DEVICE int64_t bins() const { return out_height * out_width; }
  DK_HOST_DEVICE int64_t group_channels() const { return out_channels / groups; }
  DK_HOST_DEVICE int64_t input_channel(int64_t channel, int64_t bin) const {
    return position_sensitive ? channel * bins() + bin : channel;
  }
};

// a * b, rounded, also where the compiler would fuse it with a sum: a sample that lies on a pixel, or on the map's
// edge, has to lie there on the CPU and on CUDA alike, as the derivative jumps there and the edge is where samples end.
template <class A>
DK_HOST_DEVICE static inline A product(A a, A b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == sizeof(float))
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// How far an offset moves a box of this extent.
template <class A>
DK_HOST_DEVICE static inline A roi_shift(const RoiGeometry& g, A extent, A offset) {
  return product(A(g.gamma) * extent, offset);
}

// A box in pixels of the map. `image` is -1 where the box is not finite or names an image that is not there.
template <class A>
struct RoiBox {
  int64_t image;
  A y, x, height, width;
};

template <class A>
DK_HOST_DEVICE static inline RoiBox<A> roi_box(const RoiGeometry& g, const A* roi) {
  const A scale = A(g.spatial_scale), shift = g.aligned ? A(0.5) : A(0);
  RoiBox<A> box;
  box.y = product(roi[2], scale) - shift, box.x = product(roi[1], scale) - shift;
  box.height = product(roi[4], scale) - shift - box.y, box.width = product(roi[3], scale) - shift - box.x;
  if (!g.aligned) {
    box.height = box.height > 1 ? box.height : A(1);
    box.width = box.width > 1 ? box.width : A(1);
  }
  bool good = roi[0] >= 0 && roi[0] < A(g.batch);
  for (int i = 1; i < 5; ++i) good = good && roi[i] - roi[i] == 0;  // neither NaN nor infinite
  box.image = good ? int64_t(roi[0]) : -1;
  return box;
}

// The samples of one bin along one axis: sample i lies at origin + (i + 0.5) * bin / samples.
template <class A>
struct RoiAxis {
  A origin, bin;
  int64_t samples, first, last;  // those from first to before last may lie on the map

  DK_HOST_DEVICE A at(int64_t i) const { return origin + (A(i) + A(0.5)) * bin / A(samples); }
};

// `start` and `extent` are the box's; the map has `size` pixels along the axis.
template <class A>
DK_HOST_DEVICE static inline RoiAxis<A> roi_axis(A start, A extent, int64_t bins, int64_t index, int64_t sampling_ratio,
                                                 int64_t size) {
  RoiAxis<A> axis;
  axis.bin = extent / A(bins);
  axis.origin = start + product(A(index), axis.bin);
  const A most = A(1 << 30), wanted = std::ceil(axis.bin);
  axis.samples = sampling_ratio > 0 ? sampling_ratio : wanted > 0 ? int64_t(wanted < most ? wanted : most) : 0;
  axis.first = 0, axis.last = axis.samples;
  if (sampling_ratio == 0 && axis.samples > 2 * size + 8) {  // a bin far larger than the map: leave out what is off it
    const A step = axis.bin / A(axis.samples), end = A(axis.samples);
    A first = std::floor((A(-1) - axis.origin) / step) - 2, last = std::ceil((A(size) - axis.origin) / step) + 2;
    first = first > 0 ? (first < end ? first : end) : A(0), last = last > 0 ? (last < end ? last : end) : A(0);
    axis.first = int64_t(first), axis.last = int64_t(last);
  }
  return axis;
}

// Linear interpolation at one coordinate, with RoIAlign's edges: constant up to one pixel outside, zero further out.
template <class A>
struct RoiSample {
  int64_t low, high;  // the same at the upper edge
  A fraction, slope;  // the derivative is the one to the right; 0 where the edge is repeated
  bool inside;
};

template <class A>
DK_HOST_DEVICE static inline RoiSample<A> roi_sample(A c, int64_t size) {
  RoiSample<A> sample;
  const A top = A(size - 1);
  sample.inside = c >= A(-1) && c <= A(size);  // false for NaN
  sample.slope = c >= 0 && c <= top ? A(1) : A(0);
  c = sample.inside && c > 0 ? c : A(0);
  c = c < top ? c : top;
  sample.low = int64_t(c);
  sample.high = sample.low + 1 < size ? sample.low + 1 : sample.low;
  sample.fraction = c - A(sample.low);
  return sample;
}

inline void check_roi_tensor(const char* name, const char* layout, const OptionalTensor& t, const Pair& sizes,
                             const Tensor& input) {
  if (!t) return;
  if (t->dim() != int64_t(sizes.size())) fail(name, ": expected shape ", layout, ", got ", shape_text(*t));
  for (size_t d = 0; d < sizes.size(); ++d)
    if (t->size(d) != sizes[d])
      fail(name, ": expected shape ", layout, " with size ", sizes[d], " in dimension ", d, ", got ", shape_text(*t));
  check_like(name, *t, input, true);
}

inline RoiGeometry check_roi_arguments(const Tensor& input, const Tensor& rois, const OptionalTensor& offset,
                                       const OptionalTensor& mask, const Pair& output_size, double spatial_scale,
                                       int64_t sampling_ratio, double gamma, bool aligned, bool position_sensitive) {
  check_input(input);
  if (rois.dim() != 2 || rois.size(1) != 5)
    fail("rois: expected shape (R, 5), an image and two corners a row, got ", shape_text(rois));
  check_like("rois", rois, input, true);
  check_pair("output_size", output_size, 1);
  if (!(spatial_scale > 0 && std::isfinite(spatial_scale)))
    fail("spatial_scale: expected a number above 0, got ", spatial_scale);
  if (sampling_ratio < 0 || sampling_ratio > INT32_MAX)
    fail("sampling_ratio: expected 0 (adaptive) or more, got ", sampling_ratio);
  if (!std::isfinite(gamma)) fail("gamma: expected a finite number, got ", gamma);

  RoiGeometry g{};
  g.batch = input.size(0), g.channels = input.size(1), g.height = input.size(2), g.width = input.size(3);
  g.rois = rois.size(0), g.out_height = output_size[0], g.out_width = output_size[1];
  g.spatial_scale = spatial_scale, g.gamma = gamma, g.sampling_ratio = sampling_ratio;
  g.aligned = aligned, g.position_sensitive = position_sensitive;
  if (position_sensitive && g.channels % g.bins() != 0)
    fail("input: position-sensitive pooling expects a multiple of Ph Pw = ", g.bins(), " channels, got ", g.channels);
  g.out_channels = position_sensitive ? g.channels / g.bins() : g.channels;
  g.groups = 1;
  if (offset) {
    if (offset->dim() != 4 || offset->size(1) < 2 || offset->size(1) % 2 != 0 ||
        g.out_channels % (offset->size(1) / 2) != 0)
      fail("offset: expected shape (R, 2 G, Ph, Pw) with G a divisor of the ", g.out_channels, " output channels, got ",
           shape_text(*offset));
    g.groups = offset->size(1) / 2;
  }
  check_roi_tensor("offset", "(R, 2 G, Ph, Pw)", offset, {g.rois, 2 * g.groups, g.out_height, g.out_width}, input);
  check_roi_tensor("mask", "(R, 1, Ph, Pw)", mask, {g.rois, 1, g.out_height, g.out_width}, input);
  return g;
}

inline void check_roi_gradient(const Tensor& grad, const Tensor& input, const RoiGeometry& g) {
  check_roi_tensor("grad", "(R, Cout, Ph, Pw)", grad, {g.rois, g.out_channels, g.out_height, g.out_width}, input);
}

// The type that coordinates and sums have.
inline ScalarType compute_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The operands that are small beside the input, contiguous and in the computing type.
inline Tensor plain(const Tensor& t, ScalarType type) { return torch::stable::contiguous(torch::stable::to(t, type)); }
inline OptionalTensor plain(const OptionalTensor& t, ScalarType type) {
  return t ? OptionalTensor(plain(*t, type)) : OptionalTensor();
}

using RoiGradients = std::tuple<Tensor, Tensor, Tensor>;  // of input, offset, mask

// Zeros in the computing type to sum in: that of input dense in its memory format, the others contiguous. What is not
// there or not wanted gets an empty tensor.
inline RoiGradients roi_sums(const Tensor& input, const OptionalTensor& offset, const OptionalTensor& mask,
                             const Mask& wanted) {
  check_mask(wanted, 3);
  const ScalarType type = compute_type(input);
  const auto zeros = [&](const OptionalTensor& t, bool want) {
    return torch::stable::new_zeros(input, t && want ? sizes_of(*t) : Pair{0}, type);
  };
  if (!wanted[0]) return {zeros(input, false), zeros(offset, wanted[1]), zeros(mask, wanted[2])};
  const bool channels_last = !input.is_contiguous() && input.stride(1) == 1;
  Tensor sum = torch::stable::empty(
      sizes_of(input), type, std::nullopt, input.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
  torch::stable::zero_(sum);
  return {sum, zeros(offset, wanted[1]), zeros(mask, wanted[2])};
}

// The sums in the operands' own dtypes and formats.
inline RoiGradients roi_gradients(const RoiGradients& sums, const Tensor& input, const OptionalTensor& offset,
                                  const OptionalTensor& mask, const Mask& wanted) {
  const auto in_form = [](const Tensor& sum, const Tensor& like) {
    Tensor gradient = empty_in_format_of(like, sizes_of(like));
    torch::stable::copy_(gradient, sum);
    return gradient;
  };
  const auto of = [&](const Tensor& sum, const OptionalTensor& t, bool want) {
    return t && want ? in_form(sum, *t) : torch::stable::new_empty(input, Pair{0});
  };
  const Tensor& sum = std::get<0>(sums);  // in input's format already
  return {sum.scalar_type() == input.scalar_type() ? sum : of(sum, input, wanted[0]),
          of(std::get<1>(sums), offset, wanted[1]), of(std::get<2>(sums), mask, wanted[2])};
}

// A call with checked arguments, and on CUDA the stream it runs on.
struct DK_HIDDEN RoiOperator {
  RoiGeometry g;
  Tensor input, rois;
  OptionalTensor offset, mask;
  void* stream = nullptr;
};

// The entries of the two operators on a device, which computes by
//   static void forward(RoiOperator op, Tensor& output);
//   static void backward(RoiOperator op, const Tensor& grad, RoiGradients& sums, const Mask& wanted, Determinism);
// also where there is nothing to compute, as it may check values.
template <class Device>
Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const OptionalTensor& offset,
                       const OptionalTensor& mask, const Pair& output_size, double spatial_scale,
                       int64_t sampling_ratio, double gamma, bool aligned, bool position_sensitive) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio,
                                            gamma, aligned, position_sensitive);
  Tensor output = empty_in_format_of(input, {g.rois, g.out_channels, g.out_height, g.out_width});
  Device::forward(RoiOperator{g, input, rois, offset, mask}, output);
  return output;
}

template <class Device>
RoiGradients deform_roi_pool_backward(const Tensor& grad, const Tensor& input, const Tensor& rois,
                                      const OptionalTensor& offset, const OptionalTensor& mask, const Pair& output_size,
                                      double spatial_scale, int64_t sampling_ratio, double gamma, bool aligned,
                                      bool position_sensitive, bool deterministic, bool warn_only,
                                      const Mask& output_mask) {
  const RoiGeometry g = check_roi_arguments(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio,
                                            gamma, aligned, position_sensitive);
  check_roi_gradient(grad, input, g);
  RoiGradients sums = roi_sums(input, offset, mask, output_mask);
  Device::backward(RoiOperator{g, input, rois, offset, mask}, grad, sums, output_mask,
                   Determinism{deterministic, warn_only});
  return roi_gradients(sums, input, offset, mask, output_mask);
}

}  // namespace dk
