// The kernels of depthwise_conv_per_image on CUDA. Output and dL/dinput are gathered, by a thread for a position and a
// vector of adjacent channels; dL/dweight by a block for an image, a few channels and a few taps of a kernel's row,
// which adds up over positions in an order that depends on sizes alone. So results are always the same bits.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/cuda_vectors.h"
#include "../common/dtypes.h"
#include "op.h"

namespace dk {

constexpr int kPerImageWarp = 32;
constexpr int kPerImageThreads = 256;   // of a block, at most
constexpr int kPerImageChannels = 32;   // of a block, at most
constexpr int kPerImageTableTaps = 32;  // of which a block holds the weights at a time
constexpr int kPerImageSumTaps = 3;     // of which a block adds up the weights' gradients

// One dimension of the images: where the sum for a position reads for a tap; negative where that is outside. The output
// reads the input, and dL/dinput the output's gradient.
struct PerImageAxis {
  int64_t size, stride, pad, dilation;

  DK_DEVICE int64_t from_output(int64_t position, int64_t tap) const {
    const int64_t at = position * stride - pad + tap * dilation;
    return at < size ? at : -1;
  }

  DK_DEVICE int64_t from_input(int64_t position, int64_t tap) const {
    int64_t at = position + pad - tap * dilation;
    if (at < 0) return -1;
    if (stride > 1) {
      const int64_t steps = at / stride;
      at = steps * stride == at ? steps : -1;
    }
    return at < size ? at : -1;
  }
};

// How work is cut into blocks. Threads of a block run along `lanes` vectors of adjacent channels, a power of two and no
// more than a warp, then along positions.
struct PerImageCut {
  int64_t batch, channels, positions, chunks, parts;  // chunks of channels, parts of positions or of taps
  int lanes, threads;

  DK_HOST_DEVICE int64_t blocks() const { return batch * chunks * parts; }
  DK_DEVICE int lane() const { return device::thread() % lanes; }
  DK_DEVICE int row() const { return device::thread() / lanes; }
  DK_DEVICE int rows() const { return device::threads() / lanes; }
};

template <int kVector>
PerImageCut cut_per_image(const Geometry& g, int64_t positions, bool adjacent_channels) {
  PerImageCut cut{g.batch, g.channels, positions, 1, 1, 1, kPerImageThreads};
  const int64_t vectors = g.channels / kVector, most = adjacent_channels ? kPerImageChannels / kVector : 1;
  while (cut.lanes < vectors && cut.lanes < most) cut.lanes *= 2;
  cut.chunks = pieces(vectors, cut.lanes);
  const int64_t work = std::min<int64_t>(positions, kPerImageThreads) * cut.lanes;
  cut.threads = int(std::min<int64_t>(kPerImageThreads, pieces(work, kPerImageWarp) * kPerImageWarp));
  return cut;
}

template <class T>
struct PerImageSum {
  PerImageCut cut;
  PerImageAxis y, x;
  int64_t width, kernel_h, kernel_w;  // width of the result
  StridedView<const T> from, weight;
  StridedView<T> to;
};

// The weights of some channels and taps in shared memory, a row a tap, so that a lane reads a vector.
template <class A>
struct PerImageTable {
  static constexpr int kPitch = kPerImageChannels + 16 / sizeof(A);  // so that columns lie in different banks
  static constexpr size_t kBytes = kPerImageTableTaps * kPitch * sizeof(A);

  A* data = reinterpret_cast<A*>(device::shared_memory());

  template <class T>
  DK_DEVICE void load(const PerImageSum<T>& a, int64_t n, int64_t first_channel, int channels, int64_t first_tap,
                      int taps) {
    for (int i = device::thread(); i < channels * taps; i += device::threads()) {
      const int channel = i / taps, tap = i % taps;
      const int64_t c = first_channel + channel, k = first_tap + tap;
      if (c >= a.cut.channels) continue;
      data[tap * kPitch + channel] = static_cast<A>(*a.weight.at(n, c, k / a.kernel_w, k % a.kernel_w));
    }
  }
};

// Adds what the taps of the table give a position.
template <bool kToInput, class T, class A, int kVector>
DK_DEVICE void add_taps(const PerImageSum<T>& a, const T* image, const A* table, int64_t position, int64_t first_tap,
                        int taps, A (&sum)[kVector]) {
  const auto read = [](const PerImageAxis& axis, int64_t at, int64_t tap) {
    return kToInput ? axis.from_input(at, tap) : axis.from_output(at, tap);
  };
  const int64_t h = position / a.width, w = position % a.width;
  int64_t i = first_tap / a.kernel_w, j = first_tap % a.kernel_w, y = read(a.y, h, i);
  for (int tap = 0; tap < taps; ++tap, table += PerImageTable<A>::kPitch) {
    const int64_t x = read(a.x, w, j);
    if (y >= 0 && x >= 0) {
      A pixel[kVector], weight[kVector];
      read_vector(image + y * a.from.h + x * a.from.w, pixel);
      read_vector(table, weight);
      for (int v = 0; v < kVector; ++v) sum[v] += pixel[v] * weight[v];
    }
    if (++j == a.kernel_w) j = 0, y = read(a.y, h, ++i);
  }
}

// The output, or dL/dinput.
template <bool kToInput, class T, class A, int kVector>
DK_KERNEL void per_image_sum(const PerImageSum<T> a) {
  PerImageTable<A> table;
  const int64_t taps = a.kernel_h * a.kernel_w;
  for (int64_t block = device::block_x(); block < a.cut.blocks(); block += device::blocks_x()) {
    const int64_t n = block / (a.cut.chunks * a.cut.parts), chunk = block / a.cut.parts % a.cut.chunks;
    const int64_t first_channel = chunk * a.cut.lanes * kVector, c = first_channel + a.cut.lane() * kVector;
    const int64_t position = block % a.cut.parts * a.cut.rows() + a.cut.row();
    const bool there = c < a.cut.channels && position < a.cut.positions;
    A sum[kVector] = {};
    for (int64_t first = 0; first < taps; first += kPerImageTableTaps) {
      const int count = int(first + kPerImageTableTaps < taps ? kPerImageTableTaps : taps - first);
      table.load(a, n, first_channel, a.cut.lanes * kVector, first, count);
      device::sync_block();
      if (there)
        add_taps<kToInput>(a, a.from.at(n, c, 0, 0), table.data + a.cut.lane() * kVector, position, first, count, sum);
      device::sync_block();
    }
    if (!there) continue;
    write_vector(a.to.at(n, c, position / a.width, position % a.width), sum);
  }
}

template <class T>
struct PerImageProducts {
  PerImageCut cut;
  PerImageAxis y, x;
  int64_t width, kernel_h, kernel_w;  // width of the output
  StridedView<const T> grad, input;
  T* to;  // (N, C, Kh, Kw), contiguous
};

// What the taps from (i, j) on, in one row of the kernel, have in common.
template <class T>
struct PerImageRow {
  const T *grads, *image;  // of the first channel
  int64_t i, j;
};

// Adds what a position gives the gradients of the weights.
template <class T, class A, int kVector>
DK_DEVICE void add_products(const PerImageProducts<T>& a, const PerImageRow<T>& row, int64_t position,
                            A (&sum)[kPerImageSumTaps][kVector]) {
  const int64_t h = position / a.width, w = position % a.width, y = a.y.from_output(h, row.i);
  if (y < 0) return;
  A grad[kVector];
  read_vector(row.grads + h * a.grad.h + w * a.grad.w, grad);
#pragma unroll
  for (int tap = 0; tap < kPerImageSumTaps; ++tap) {
    const int64_t x = a.x.from_output(w, row.j + tap);
    if (x < 0) continue;  // as in the end of a longer row than the kernel's, whose sums nobody reads
    A pixel[kVector];
    read_vector(row.image + y * a.input.h + x * a.input.w, pixel);
    for (int v = 0; v < kVector; ++v) sum[tap][v] += grad[v] * pixel[v];
  }
}

// A block's sums: over a warp's positions by shuffles, over warps through shared memory.
template <class A>
struct PerImageParts {
  static constexpr size_t kBytes = kPerImageThreads / kPerImageWarp * kPerImageSumTaps * kPerImageChannels * sizeof(A);

  A* data = reinterpret_cast<A*>(device::shared_memory());

  DK_DEVICE A& at(int warp, int tap, int channel) const {
    return data[(warp * kPerImageSumTaps + tap) * kPerImageChannels + channel];
  }

  template <int kVector>
  DK_DEVICE void add_up_warp(A (&sum)[kPerImageSumTaps][kVector], int lanes) const {
    const int lane = device::thread() % kPerImageWarp, warp = device::thread() / kPerImageWarp;
#pragma unroll
    for (int tap = 0; tap < kPerImageSumTaps; ++tap)
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        for (int mask = kPerImageWarp / 2; mask >= lanes; mask /= 2)
          sum[tap][v] += device::shuffle_xor(sum[tap][v], mask);
        if (lane < lanes) at(warp, tap, lane * kVector + v) = sum[tap][v];
      }
  }

  DK_DEVICE A total(int tap, int channel) const {
    A sum = 0;
    for (int warp = 0; warp < device::threads() / kPerImageWarp; ++warp) sum += at(warp, tap, channel);
    return sum;
  }
};

template <class T, class A, int kVector>
DK_KERNEL void per_image_weight_gradient(const PerImageProducts<T> a) {
  const PerImageParts<A> parts;
  const int channels = a.cut.lanes * kVector;
  for (int64_t block = device::block_x(); block < a.cut.blocks(); block += device::blocks_x()) {
    const int64_t n = block / (a.cut.chunks * a.cut.parts);
    const int64_t first_channel = block / a.cut.parts % a.cut.chunks * channels;
    const int64_t c = first_channel + a.cut.lane() * kVector, end = c < a.cut.channels ? a.cut.positions : 0;
    const int64_t part = block % a.cut.parts, i = part % a.kernel_h, j = part / a.kernel_h * kPerImageSumTaps;
    const PerImageRow<T> row{a.grad.at(n, c, 0, 0), a.input.at(n, c, 0, 0), i, j};
    A sum[kPerImageSumTaps][kVector] = {};
    for (int64_t position = a.cut.row(); position < end; position += a.cut.rows()) add_products(a, row, position, sum);
    parts.add_up_warp(sum, a.cut.lanes);
    device::sync_block();
    for (int k = device::thread(); k < kPerImageSumTaps * channels; k += device::threads()) {
      const int tap = k % kPerImageSumTaps, channel = k / kPerImageSumTaps;
      if (j + tap < a.kernel_w && first_channel + channel < a.cut.channels)
        a.to[((n * a.cut.channels + first_channel + channel) * a.kernel_h + i) * a.kernel_w + j + tap] =
            static_cast<T>(parts.total(tap, channel));
    }
    device::sync_block();
  }
}

// Calls f with the number of channels of a vector that both tensors have.
template <class T, class F>
void with_vectors(const Tensor& a, const Tensor& b, const F& f) {
  if (has_vectors(a) && has_vectors(b))
    f(std::integral_constant<int, 16 / sizeof(T)>());
  else
    f(std::integral_constant<int, 1>());
}

inline int64_t per_image_blocks(const PerImageCut& cut) { return std::min(cut.blocks(), kMaxBlocks); }

// Fills the output, of the input, or dL/dinput, of the output's gradient.
template <class T, class A, bool kToInput>
void launch_per_image_sum(const Geometry& g, const Tensor& from, const Tensor& weight, const Tensor& to, void* stream) {
  with_vectors<T>(from, to, [&](auto vector) {
    constexpr int kVector = decltype(vector)::value;
    PerImageCut cut = cut_per_image<kVector>(g, to.size(2) * to.size(3), to.stride(1) == 1);
    cut.parts = pieces(cut.positions, cut.threads / cut.lanes);
    const PerImageSum<T> a{cut,
                           {from.size(2), g.stride_h, g.pad_h, g.dilation_h},
                           {from.size(3), g.stride_w, g.pad_w, g.dilation_w},
                           to.size(3),
                           g.kernel_h,
                           g.kernel_w,
                           strided_view<const T>(from),
                           strided_view<const T>(weight),
                           strided_view<T>(to)};
    launch("depthwise_conv_per_image", &per_image_sum<kToInput, T, A, kVector>, per_image_blocks(cut), 1, cut.threads,
           PerImageTable<A>::kBytes, stream, a);
  });
}

template <class T, class A>
void launch_per_image_weight_gradient(const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& to,
                                      void* stream) {
  with_vectors<T>(grad, input, [&](auto vector) {
    constexpr int kVector = decltype(vector)::value;
    PerImageCut cut = cut_per_image<kVector>(g, g.out_height * g.out_width, input.stride(1) == 1);
    cut.parts = g.kernel_h * pieces(g.kernel_w, kPerImageSumTaps);
    const PerImageProducts<T> a{cut,
                                {g.height, g.stride_h, g.pad_h, g.dilation_h},
                                {g.width, g.stride_w, g.pad_w, g.dilation_w},
                                g.out_width,
                                g.kernel_h,
                                g.kernel_w,
                                strided_view<const T>(grad),
                                strided_view<const T>(input),
                                static_cast<T*>(to.data_ptr())};
    launch("depthwise_conv_per_image_backward", &per_image_weight_gradient<T, A, kVector>, per_image_blocks(cut), 1,
           cut.threads, PerImageParts<A>::kBytes, stream, a);
  });
}

// Kernels on a stream, for the entries of op.h.
struct PerImageKernels {
  static void forward(const PerImageOperator& op, Tensor& output) {
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      launch_per_image_sum<decltype(t), decltype(a), false>(op.g, op.input, op.weight, output, op.stream);
    });
  }

  static void backward(const PerImageOperator& op, const Tensor& grad, PerImageGradients& gradients,
                       const Mask& wanted) {
    with_types(op.input.scalar_type(), [&](auto t, auto a) {
      using T = decltype(t);
      using A = decltype(a);
      if (wanted[0]) launch_per_image_sum<T, A, true>(op.g, grad, op.weight, std::get<0>(gradients), op.stream);
      if (wanted[1]) launch_per_image_weight_gradient<T, A>(op.g, grad, op.input, std::get<1>(gradients), op.stream);
    });
  }
};

}  // namespace dk
