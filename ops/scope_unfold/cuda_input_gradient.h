// dL/dinput of columns on CUDA, added to what is there. Without data offsets it is gathered: by a thread for a pixel
// and a vector of channels, over the taps that have read the pixel, in their order. With them it is scattered, by
// atomics or, `ordered`, by a thread for a vector of channels at all positions of an image.
#pragma once

#include "cuda_points.h"

namespace dk::unfold {

// A tap that has read a pixel: where its position's row of columns begins, -1 if none has; and where it read the scope.
template <class A>
struct Reader : ScopeCorners<A> {
  int64_t at;

  DK_DEVICE Reader(const Axes<A>& axes, int64_t at_) : ScopeCorners<A>(axes), at(at_) {}
};

template <class T, class A>
struct GatherArguments {
  Call<T, A> call;
  Cut cut;
  int64_t first_image, skip;  // where the pixels begin that taps of the piece may read: in an image, behind so many
  const T* grad;              // of columns
  A* sum;                     // (N, H, W, C)
};

// One axis: the position whose tap reads a pixel, -1 if none does.
DK_DEVICE int reader(int64_t pixel, int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size) {
  const int64_t from = pixel + pad - tap * dilation;
  if (from < 0) return -1;
  const int position = quotient(from, stride);
  return position * stride == from && position < size ? position : -1;
}

template <class T, class A>
DK_DEVICE void find_readers(const GatherArguments<T, A>& a, int first_row, int first, int taps, Reader<A>* to) {
  const Geometry& g = a.call.g;
  a.cut.for_slots(taps, [&](int row, int slot) {
    if (first_row + row >= a.cut.count) return;
    const Place pixel = place(a.first_image, a.skip + first_row + row, g.height, g.width);
    const Tap tap(g, first + slot);
    const Place p{pixel.n, reader(pixel.h, tap.y, g.stride_h, g.pad_h, g.dilation_h, g.out_height),
                  reader(pixel.w, tap.x, g.stride_w, g.pad_w, g.dilation_w, g.out_width)};
    const int64_t position = a.call.position(p);
    Reader<A>& result = to[slot * a.cut.rows() + row];
    if (p.h >= 0 && p.w >= 0 && position >= 0 && position < a.call.count)
      result = Reader<A>(in_scope(a.call, p, tap), a.call.element(position, 0));
    else
      result.at = -1;
  });
}

// What a position's columns give the pixel that a tap reads: their sum with the coefficients of the samples.
template <class T, class A, int kChannels>
DK_DEVICE void add_samples(const ScopeCorners<A>& corners, const T* grad, int depth, A (&sum)[kChannels]) {
  A values[4][kChannels];
  for (int j = 0; j < 4; ++j) read_vector(grad + times(corners.sample[j], depth), values[j]);
  for (int j = 0; j < 4; ++j)
    for (int v = 0; v < kChannels; ++v) sum[v] += corners.value(j) * values[j][v];
}

// Adds to a pixel's channels, which may be this thread's `alone`.
template <class A, int kChannels>
DK_DEVICE void add_to_pixel(A* to, const A (&values)[kChannels], bool alone) {
  if (alone) {
    A before[kChannels];
    read_vector(to, before);
    for (int v = 0; v < kChannels; ++v) before[v] += values[v];
    write_vector(to, before);
  } else if constexpr (kChannels == 4) {
    device::add_atomic(to, values);
  } else {
    for (int v = 0; v < kChannels; ++v) device::add_atomic(to + v, values[v]);
  }
}

template <class T, class A, int kChannels>
DK_KERNEL void DK_BOUNDS(kThreads / kWarp, 6) gather_pixels(const GatherArguments<T, A> a) {
  Reader<A>* readers = reinterpret_cast<Reader<A>*>(device::shared_memory());
  const int taps = int(a.call.g.taps());
  for (int block = int(device::block_x()); block < a.cut.tiles * a.cut.chunks; block += int(device::blocks_x())) {
    const int tile = quotient(block, a.cut.chunks), channel = a.cut.channel(block - tile * a.cut.chunks);
    const int first = tile * a.cut.rows(), row = first + a.cut.row();
    const bool there = row < a.cut.count && channel < a.cut.channels;
    const T* grad = a.grad + (there ? a.call.element(0, channel) : 0);
    A sum[kChannels] = {};
    for (int tap = 0; tap < taps; tap += a.cut.taps_at_once) {
      const int count = a.cut.taps_from(a.call.g, tap);
      device::sync_block();  // for what the memory held before
      find_readers(a, first, tap, count, readers);
      device::sync_block();
      for (int slot = 0; there && slot < count; ++slot) {
        const Reader<A>& reader = readers[slot * a.cut.rows() + a.cut.row()];
        if (reader.at >= 0) add_samples(reader, grad + reader.at, a.call.depth, sum);
      }
    }
    if (!there) continue;
    const int64_t pixel = a.first_image * a.call.g.height * a.call.g.width + a.skip + row;
    add_to_pixel(a.sum + pixel * a.cut.channels + channel, sum, true);
  }
}

// A tap of a position: where it reads the scope and the image.
template <class A>
struct Target {
  ScopeCorners<A> scope;
  Reading<A, true> image;
};

template <class T, class A>
struct ScatterArguments {
  Call<T, A> call;
  Cut cut;
  bool ordered;
  int units;      // tiles of positions or, ordered, images
  const T* grad;  // of columns
  StridedView<A> sum;
};

// Adds what some taps of the positions from `first` on to their pixels; a thread for its row's or, ordered, for all.
template <int kChannels, class T, class A>
DK_DEVICE void add_to_pixels(const ScatterArguments<T, A>& a, const Target<A>* targets, int first, int end, int taps,
                             int channel) {
  const int rows = a.cut.rows();
  for (int row = a.ordered ? 0 : a.cut.row(); row < rows && first + row < end; row += a.ordered ? 1 : rows) {
    const T* grad = a.grad + a.call.element(first + row, channel);
    for (int slot = 0; slot < taps; ++slot) {
      const Target<A>& target = targets[slot * rows + row];
      A term[kChannels] = {};
      add_samples(target.scope, grad, a.call.depth, term);
      for (int j = 0; j < 4; ++j) {
        if (target.image.at[j] < 0) continue;
        A values[kChannels];
        for (int v = 0; v < kChannels; ++v) values[v] = target.image.value(j) * term[v];
        add_to_pixel(a.sum.data + target.image.at[j] + channel, values, a.ordered);
      }
    }
  }
}

// Ordered, a block has a chunk of channels of an image, of which the threads of its first row take a vector each.
template <class T, class A, int kChannels>
DK_KERNEL void DK_BOUNDS(kThreads / kWarp, sizeof(A) == 8 ? 4 : 6) scatter_to_pixels(const ScatterArguments<T, A> a) {
  Target<A>* targets = reinterpret_cast<Target<A>*>(device::shared_memory());
  const Call<T, A>& call = a.call;
  const int rows = a.cut.rows();
  for (int block = int(device::block_x()); block < a.units * a.cut.chunks; block += int(device::blocks_x())) {
    const int unit = quotient(block, a.cut.chunks), channel = a.cut.channel(block - unit * a.cut.chunks);
    const bool there = channel < a.cut.channels && (!a.ordered || a.cut.row() == 0);
    const int64_t begin = a.ordered ? call.position({int(call.first_image) + unit, 0, 0}) : int64_t(unit) * rows;
    const int64_t last = begin + (a.ordered ? call.g.out_height * call.g.out_width : rows);
    const int end = int(last < call.count ? last : call.count);
    for (int row = begin > 0 ? int(begin) : 0; row < end; row += rows)
      for (int tap = 0; tap < int(call.g.taps()); tap += a.cut.taps_at_once) {
        const int count = a.cut.taps_from(call.g, tap);
        device::sync_block();  // for what the memory held before
        for_taps(call, a.cut, row, tap, count, [&](const Place& p, const Tap& t, int i) {
          targets[i] = {ScopeCorners<A>(in_scope(call, p, t)), Reading<A, true>(call, a.sum, p, t)};
        });
        device::sync_block();
        if (there) add_to_pixels<kChannels>(a, targets, row, end, count, channel);
      }
  }
}

// The rows of pixels that taps of a piece read lie between these, counted over all images.
struct PixelRows {
  int64_t first, end;

  explicit PixelRows(const UnfoldOperator& op) {
    const Geometry& g = op.g;
    const int64_t begin = op.first / g.out_width, last = (op.first + op.count - 1) / g.out_width;
    const int64_t reach = g.dilation_h * (g.kernel_h - 1) + 1;
    const auto top = [&](int64_t row) { return row % g.out_height * g.stride_h - g.pad_h; };
    first = begin / g.out_height * g.height + std::clamp<int64_t>(top(begin), 0, g.height);
    end = last / g.out_height * g.height + std::clamp<int64_t>(top(last) + reach, 0, g.height);
  }
};

template <class T, class A>
void run_gather(const UnfoldOperator& op, const Tensor& grad, const Tensor& to) {
  const PixelRows rows(op);
  if (rows.first >= rows.end) return;  // all taps lie outside
  with_vectors<T>(has_vectors(to) && has_vectors_of_columns(op, grad), [&](auto vector) {
    constexpr int kChannels = decltype(vector)::value;
    const int64_t pixels = (rows.end - rows.first) * op.g.width;
    check_number("input", "pixels that a piece may read", pixels);
    const Cut cut = Cut(op, pixels, kChannels).keep(op.g, sizeof(Reader<A>));
    launch_units(
        "unfold_columns_backward", &gather_pixels<T, A, kChannels>, cut.tiles, cut.chunks,
        cut.rows() * cut.taps_at_once * sizeof(Reader<A>), op.stream,
        GatherArguments<T, A>{Call<T, A>(op), cut, rows.first / op.g.height, rows.first % op.g.height * op.g.width,
                              static_cast<const T*>(grad.data_ptr()), static_cast<A*>(to.data_ptr())});
  });
}

template <class T, class A>
void run_scatter(const UnfoldOperator& op, const Tensor& grad, const Tensor& to, bool ordered) {
  with_vectors<T>(has_vectors(to) && has_vectors_of_columns(op, grad), [&](auto vector) {
    constexpr int kChannels = decltype(vector)::value;
    const Call<T, A> call(op);
    const Cut cut = Cut(op, op.count, kChannels).keep(op.g, sizeof(Target<A>));
    const int64_t images = pieces(call.skip + call.count, op.g.out_height * op.g.out_width);
    const int units = ordered ? int(images) : cut.tiles;
    launch_units(
        "unfold_columns_backward", &scatter_to_pixels<T, A, kChannels>, units, cut.chunks,
        cut.rows() * cut.taps_at_once * sizeof(Target<A>), op.stream,
        ScatterArguments<T, A>{call, cut, ordered, units, static_cast<const T*>(grad.data_ptr()), strided_view<A>(to)});
  });
}

}  // namespace dk::unfold
