// deform_roi_pool on the CPU, with its schemas.
//
// A bin's average of bilinear samples on a grid is a product of two axes: sum over rows y and columns x of
// a[y] b[x] input[y, x]. So each bin gets two short lists of weights, in which samples that read the same row or column
// are merged, and the loops over the channels do a quarter of the work of four corners a sample.
//
// dL/dinput is cut into images and blocks of channels, and adds up boxes in their order; everything else is cut into
// boxes. So results are the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/dtypes.h"
#include "op.h"

namespace dk {
namespace {

constexpr int64_t kBlock = 32;  // channels of one piece of dL/dinput: 8 pieces an image for a pyramid's 256

// What one bin reads along one axis: pixels, their weights, and the weights' derivatives by the coordinate.
template <class A>
struct Line {
  std::vector<int64_t> pixel;
  std::vector<A> weight, slope;
  int64_t samples = 0;

  void fill(const RoiAxis<A>& axis, int64_t size) {
    pixel.clear(), weight.clear(), slope.clear();
    samples = axis.samples;
    for (int64_t i = axis.first; i < axis.last; ++i) {
      const RoiSample<A> s = roi_sample(axis.at(i), size);
      if (!s.inside) continue;
      add(s.low, 1 - s.fraction, -s.slope);
      add(s.high, s.fraction, s.slope);
    }
  }

  // Coordinates ascend, so a pixel met before is one of the last two.
  void add(int64_t at, A w, A d) {
    const int64_t size = int64_t(pixel.size());
    for (int64_t i = size - 1; i >= std::max<int64_t>(0, size - 2); --i)
      if (pixel[i] == at) {
        weight[i] += w, slope[i] += d;
        return;
      }
    pixel.push_back(at), weight.push_back(w), slope.push_back(d);
  }
};

template <class A>
struct Bin {
  Line<A> y, x;
  A count, mask;  // the output is the lines' product, over count, times mask
};

// The operands, and the bins of one box.
template <class A>
struct Call {
  RoiGeometry g;
  Tensor roi_tensor;
  OptionalTensor offset_tensor, mask_tensor;
  const A *rois, *offset, *mask;

  explicit Call(const RoiOperator& op)
      : g(op.g), roi_tensor(plain(op.rois, compute_type(op.input))),
        offset_tensor(plain(op.offset, compute_type(op.input))), mask_tensor(plain(op.mask, compute_type(op.input))),
        rois(data(roi_tensor)), offset(offset_tensor ? data(*offset_tensor) : nullptr),
        mask(mask_tensor ? data(*mask_tensor) : nullptr) {
    check_values();
  }

  static const A* data(const Tensor& t) { return static_cast<const A*>(t.data_ptr()); }
  RoiBox<A> box(int64_t r) const { return roi_box(g, rois + r * 5); }

  void check_values() const {
    for (int64_t r = 0; r < g.rois; ++r) {
      if (box(r).image >= 0) continue;
      const A index = rois[r * 5];
      if (!(index >= 0 && index < A(g.batch)))
        fail("rois: row ", r, " names image ", index, " of ", g.batch, "; expected 0 to ", g.batch - 1);
      fail("rois: row ", r, " has a coordinate that is NaN or infinite");
    }
    const int64_t count = offset ? g.rois * 2 * g.groups * g.bins() : 0;
    for (int64_t i = 0; i < count; ++i)
      if (offset[i] != offset[i])
        fail("offset: NaN at index (", i / (2 * g.groups * g.bins()), ", ", i / g.bins() % (2 * g.groups), ", ",
             i % g.bins() / g.out_width, ", ", i % g.out_width, ")");
  }

  void fill_bin(const RoiBox<A>& b, int64_t r, int64_t group, int64_t bin, Bin<A>& to) const {
    A y = b.y, x = b.x;
    if (offset) {
      const A* at = offset + (r * g.groups + group) * 2 * g.bins() + bin;
      y += roi_shift(g, b.height, at[0]), x += roi_shift(g, b.width, at[g.bins()]);
    }
    to.y.fill(roi_axis(y, b.height, g.out_height, bin / g.out_width, g.sampling_ratio, g.height), g.height);
    to.x.fill(roi_axis(x, b.width, g.out_width, bin % g.out_width, g.sampling_ratio, g.width), g.width);
    to.count = std::max(A(to.y.samples) * A(to.x.samples), A(1));
    to.mask = mask ? mask[r * g.bins() + bin] : A(1);
  }

  // The bins of the groups that the output channels [begin, end) belong to; bins of the group g at [g * bins()].
  void fill_bins(int64_t r, int64_t begin, int64_t end, std::vector<Bin<A>>& to) const {
    to.resize(g.groups * g.bins());
    if (begin >= end) return;
    const RoiBox<A> b = box(r);
    for (int64_t group = begin / g.group_channels(); group <= (end - 1) / g.group_channels(); ++group)
      for (int64_t bin = 0; bin < g.bins(); ++bin) fill_bin(b, r, group, bin, to[group * g.bins() + bin]);
  }

  // Calls f(channel, channels, bin number, bin): runs of channels that lie side by side, else one channel at a time.
  template <class F>
  void walk(int64_t begin, int64_t end, int64_t channel_stride, const std::vector<Bin<A>>& bins, const F& f) const {
    const bool adjacent = channel_stride == 1 && !g.position_sensitive;
    for (int64_t c = begin; c < end;) {
      const int64_t group = c / g.group_channels();
      const int64_t channels = adjacent ? std::min(end, (group + 1) * g.group_channels()) - c : 1;
      for (int64_t bin = 0; bin < g.bins(); ++bin) f(c, channels, bin, bins[group * g.bins() + bin]);
      c += channels;
    }
  }
};

template <class T>
struct View {
  T* data;
  int64_t n, c, h, w;

  explicit View(const Tensor& t)
      : data(static_cast<T*>(t.data_ptr())), n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)) {}
};

template <class T, class A>
void forward(const Call<A>& call, const Tensor& input, const Tensor& output) {
  const RoiGeometry& g = call.g;
  const View<const T> x(input);
  const View<T> out(output);
  torch::stable::parallel_for(0, g.rois, 1, [&](int64_t begin, int64_t end) {
    std::vector<Bin<A>> bins;
    std::vector<A> sums(g.out_channels);
    for (int64_t r = begin; r < end; ++r) {
      call.fill_bins(r, 0, g.out_channels, bins);
      const T* image = x.data + call.box(r).image * x.n;
      call.walk(0, g.out_channels, x.c, bins, [&](int64_t c, int64_t channels, int64_t bin, const Bin<A>& b) {
        const T* from = image + g.input_channel(c, bin) * x.c;
        std::fill_n(sums.data(), channels, A(0));
        for (size_t i = 0; i < b.y.pixel.size(); ++i)
          for (size_t j = 0; j < b.x.pixel.size(); ++j) {
            const A weight = b.y.weight[i] * b.x.weight[j];
            const T* pixel = from + b.y.pixel[i] * x.h + b.x.pixel[j] * x.w;
            for (int64_t k = 0; k < channels; ++k) sums[k] += weight * static_cast<A>(pixel[k]);
          }
        T* to = out.data + r * out.n + c * out.c + bin / g.out_width * out.h + bin % g.out_width * out.w;
        for (int64_t k = 0; k < channels; ++k) to[k * out.c] = static_cast<T>(sums[k] / b.count * b.mask);
      });
    }
  });
}

// dL/dinput; grad is (R, Cout, Ph, Pw), contiguous, and grad_input holds zeros.
template <class A>
void backward_input(const Call<A>& call, const A* grad, const Tensor& grad_input) {
  const RoiGeometry& g = call.g;
  const View<A> to(grad_input);
  std::vector<std::vector<int64_t>> boxes(g.batch);
  for (int64_t r = 0; r < g.rois; ++r) boxes[call.box(r).image].push_back(r);
  const int64_t blocks = (g.out_channels + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, g.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Bin<A>> bins;
    std::vector<A> out(kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, first = i % blocks * kBlock, last = std::min(g.out_channels, first + kBlock);
      for (const int64_t r : boxes[image]) {
        call.fill_bins(r, first, last, bins);
        call.walk(first, last, to.c, bins, [&](int64_t c, int64_t channels, int64_t bin, const Bin<A>& b) {
          const A* from = grad + (r * g.out_channels + c) * g.bins() + bin;
          for (int64_t k = 0; k < channels; ++k) out[k] = from[k * g.bins()] / b.count * b.mask;
          A* base = to.data + image * to.n + g.input_channel(c, bin) * to.c;
          for (size_t y = 0; y < b.y.pixel.size(); ++y)
            for (size_t x = 0; x < b.x.pixel.size(); ++x) {
              const A weight = b.y.weight[y] * b.x.weight[x];
              A* pixel = base + b.y.pixel[y] * to.h + b.x.pixel[x] * to.w;
              for (int64_t k = 0; k < channels; ++k) pixel[k] += weight * out[k];
            }
        });
      }
    }
  });
}

// dL/doffset and dL/dmask, either of which may be null.
template <class T, class A>
void backward_bins(const Call<A>& call, const A* grad, const Tensor& input, A* grad_offset, A* grad_mask) {
  const RoiGeometry& g = call.g;
  const View<const T> x(input);
  torch::stable::parallel_for(0, g.rois, 1, [&](int64_t begin, int64_t end) {
    std::vector<Bin<A>> bins;
    std::vector<A> out(g.out_channels);
    for (int64_t r = begin; r < end; ++r) {
      call.fill_bins(r, 0, g.out_channels, bins);
      const RoiBox<A> box = call.box(r);
      call.walk(0, g.out_channels, x.c, bins, [&](int64_t c, int64_t channels, int64_t bin, const Bin<A>& b) {
        const T* from = x.data + box.image * x.n + g.input_channel(c, bin) * x.c;
        for (int64_t k = 0; k < channels; ++k) out[k] = grad[(r * g.out_channels + c + k) * g.bins() + bin] / b.count;
        A value = 0, along_y = 0, along_x = 0;
        for (size_t i = 0; i < b.y.pixel.size(); ++i)
          for (size_t j = 0; j < b.x.pixel.size(); ++j) {
            const T* pixel = from + b.y.pixel[i] * x.h + b.x.pixel[j] * x.w;
            A dot = 0;
            for (int64_t k = 0; k < channels; ++k) dot += out[k] * static_cast<A>(pixel[k]);
            value += b.y.weight[i] * b.x.weight[j] * dot;
            along_y += b.y.slope[i] * b.x.weight[j] * dot;
            along_x += b.y.weight[i] * b.x.slope[j] * dot;
          }
        if (grad_mask) grad_mask[r * g.bins() + bin] += value;
        if (!grad_offset) return;
        A* to = grad_offset + (r * g.groups + c / g.group_channels()) * 2 * g.bins() + bin;
        to[0] += A(g.gamma) * box.height * b.mask * along_y;
        to[g.bins()] += A(g.gamma) * box.width * b.mask * along_x;
      });
    }
  });
}

struct Cpu {
  static void forward(const RoiOperator& op, Tensor& output) {
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      const Call<decltype(a)> call(op);
      if (output.numel() != 0) dk::forward<decltype(t)>(call, op.input, output);
    });
  }

  static void backward(const RoiOperator& op, const Tensor& grad, const RoiGradients& sums, const Mask& wanted,
                       Determinism) {
    const auto& [sum_input, sum_offset, sum_mask] = sums;
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      using T = decltype(t);
      using A = decltype(a);
      const Call<A> call(op);
      if (grad.numel() == 0) return;  // nothing flows back
      const Tensor plain_grad = plain(grad, compute_type(op.input));
      const A* out = Call<A>::data(plain_grad);
      if (wanted[0]) backward_input(call, out, sum_input);
      A* to_offset = op.offset && wanted[1] ? static_cast<A*>(sum_offset.data_ptr()) : nullptr;
      A* to_mask = op.mask && wanted[2] ? static_cast<A*>(sum_mask.data_ptr()) : nullptr;
      if (to_offset || to_mask) backward_bins<T>(call, out, op.input, to_offset, to_mask);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, Tensor? mask, int[] output_size, "
      "float spatial_scale, int sampling_ratio, float gamma, bool aligned, bool position_sensitive) -> Tensor");
  // Gradients of input, offset and mask; an empty tensor for what is not there and for what output_mask leaves out.
  m.def(
      "deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor? offset, Tensor? mask, "
      "int[] output_size, float spatial_scale, int sampling_ratio, float gamma, bool aligned, bool position_sensitive, "
      "bool deterministic, bool warn_only=False, bool[3] output_mask=[True, True, True]) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool<Cpu>));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward<Cpu>));
}

}  // namespace dk
