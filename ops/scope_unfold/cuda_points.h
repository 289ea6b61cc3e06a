// What the kernels of unfold_columns prepare in shared memory for taps of some positions: where each reads the scope
// and the image. And how their work is cut into blocks.
#pragma once

#include "../common/cuda_vectors.h"
#include "../common/dtypes.h"
#include "../deform_kernel_conv/axis.h"
#include "op.h"

namespace dk::unfold {

constexpr int kWarp = 32, kThreadBits = 7, kThreads = 1 << kThreadBits;
constexpr int kLeastLaneBits = 3;           // fewer channels leave some lanes idle
constexpr size_t kSharedBytes = 24 * 1024;  // aimed at, so that several blocks fit on a multiprocessor
template <class T>
constexpr int kVector = sizeof(T) == 8 ? 2 : 4;  // channels of a vector, by registers

// Of sizes below 2^32, many times as fast as of 64 bits.
DK_DEVICE int quotient(int64_t a, int64_t b) { return int(uint32_t(a) / uint32_t(b)); }

// Of numbers that are not negative, by one instruction.
DK_DEVICE int64_t times(int a, int b) { return int64_t(uint64_t(uint32_t(a)) * uint32_t(b)); }

// Of a volume (N, height, width).
struct Place {
  int n, h, w;
};

// The place `index` behind the first of image `n`.
DK_DEVICE Place place(int64_t n, int64_t index, int64_t height, int64_t width) {
  const int row = quotient(index, width), image = quotient(row, height);
  return {int(n) + image, row - image * int(height), int(index - row * width)};
}

struct Tap {
  int number, y, x;

  DK_DEVICE Tap(const Geometry& g, int tap) : number(tap), y(quotient(tap, g.kernel_w)) {
    x = tap - y * int(g.kernel_w);
  }
};

// Offsets (N, 2 taps, Hout, Wout) of any strides, in the input's type or, `wide`, in that of sums; may be absent.
template <class T, class A>
struct OffsetView {
  const void* data = nullptr;
  bool wide = false;
  int64_t n = 0, c = 0, h = 0, w = 0;

  DK_DEVICE int64_t index(const Place& p, const Tap& tap) const {
    return p.n * n + 2 * tap.number * c + p.h * h + p.w * w;
  }
  DK_DEVICE A at(int64_t i) const {
    return wide ? static_cast<const A*>(data)[i] : static_cast<A>(static_cast<const T*>(data)[i]);
  }
};

template <class T, class A>
OffsetView<T, A> offset_view(const OptionalTensor& t, ScalarType own) {
  if (!t) return {};
  return {t->data_ptr(), t->scalar_type() != own, t->stride(0), t->stride(1), t->stride(2), t->stride(3)};
}

// What kernels count by 32 bits, and may add to one another and round up: all but elements of memory.
inline void check_number(const char* name, const char* what, int64_t number) {
  if (number > INT32_MAX / 2) fail(name, ": expected less than 2^30 ", what, " on CUDA, got ", number);
}

// A call, as kernels take it.
template <class T, class A>
struct Call {
  Geometry g;
  int64_t groups;
  int depth, samples;                // channels of a group, and samples of the scope
  int64_t first_image, skip, count;  // where the piece begins: in an image, behind so many of its positions
  StridedView<const T> input;
  OffsetView<T, A> data_offset, kernel_offset;

  explicit Call(const UnfoldOperator& op)
      : g(op.g), groups(op.groups), depth(int(g.channels / groups)), samples(int(g.scope_h * g.scope_w)),
        first_image(op.first / (g.out_height * g.out_width)), skip(op.first % (g.out_height * g.out_width)),
        count(op.count), input(strided_view<const T>(op.input)),
        data_offset(offset_view<T, A>(op.data_offset, op.input.scalar_type())),
        kernel_offset(offset_view<T, A>(op.kernel_offset, op.input.scalar_type())) {
    check_number("input", "channels", g.channels), check_number("input", "pixels of an image", g.height * g.width);
    check_number("padding", "positions of an image and a piece", g.out_height * g.out_width + count);
    check_number("kernel_size", "taps", g.taps());
  }

  // The number of a position in the piece.
  DK_DEVICE int64_t position(const Place& p) const {
    return ((p.n - first_image) * g.out_height + p.h) * g.out_width + p.w - skip;
  }

  // Of a row of columns, (Sh Sw, depth), at a position of the piece: the element that sample 0 has for a channel.
  DK_DEVICE int64_t element(int64_t position, int channel) const {
    if (groups == 1) return position * samples * depth + channel;
    const int64_t group = quotient(channel, depth);
    return ((group * count + position) * samples - group) * depth + channel;
  }
};

template <class T, class A>
DK_DEVICE Place place(const Call<T, A>& a, int position) {
  return place(a.first_image, a.skip + position, a.g.out_height, a.g.out_width);
}

// The two samples of an axis that a coordinate lies between: their coefficients, and these coefficients' derivatives;
// zero where there is none. A NaN is both coefficients. One of the two is always there.
template <class A>
struct Neighbours {
  int lower, size;
  A value[2], slope[2];

  DK_DEVICE Neighbours(A c, int64_t size_, bool clip) : size(int(size_)) {
    const Axis<A> axis = scope_axis<A>(c, size_, clip);
    lower = int(axis.lower);
    for (int j = 0; j < 2; ++j) {
      const bool there = is_there(j);
      value[j] = c != c ? c : there ? (j ? axis.fraction : 1 - axis.fraction) : A(0);
      slope[j] = there ? (j ? axis.slope : -axis.slope) : A(0);
    }
  }

  DK_DEVICE bool is_there(int j) const { return lower + j >= 0 && lower + j < size; }
  // Whether a coordinate that is not clipped is near it. One that is near none has a `lower` all the same.
  DK_DEVICE bool is_near(int j) const { return is_there(j) && (slope[j] != 0 || value[j] != value[j]); }
  DK_DEVICE int nearest(int j) const { return is_there(j) ? lower + j : lower + 1 - j; }
  DK_DEVICE A of(int sample) const { return sample == lower ? value[0] : sample == lower + 1 ? value[1] : A(0); }
  DK_DEVICE A nan() const { return value[0] != value[0] ? value[0] : A(0); }
};

// Where a tap of a position reads, along both axes.
template <class A>
struct Axes {
  Neighbours<A> y, x;
};

template <class T, class A>
DK_DEVICE Axes<A> in_scope(const Call<T, A>& a, const Place& p, const Tap& tap) {
  const Geometry& g = a.g;
  A y = A(tap.y) + A(g.scope_h - g.kernel_h) / 2, x = A(tap.x) + A(g.scope_w - g.kernel_w) / 2;
  if (const OffsetView<T, A>& offset = a.kernel_offset; offset.data) {
    const int64_t i = offset.index(p, tap);
    y += offset.at(i), x += offset.at(i + offset.c);
  }
  return {Neighbours<A>(y, g.scope_h, g.clip), Neighbours<A>(x, g.scope_w, g.clip)};
}

// The row that a tap without an offset reads, and its column.
DK_DEVICE int64_t row_of(const Geometry& g, const Place& p, const Tap& tap) {
  return p.h * g.stride_h - g.pad_h + tap.y * g.dilation_h;
}
DK_DEVICE int64_t column_of(const Geometry& g, const Place& p, const Tap& tap) {
  return p.w * g.stride_w - g.pad_w + tap.x * g.dilation_w;
}

template <class T, class A>
DK_DEVICE Axes<A> in_image(const Call<T, A>& a, const Place& p, const Tap& tap) {
  const OffsetView<T, A>& offset = a.data_offset;
  const int64_t i = offset.index(p, tap);
  return {Neighbours<A>(A(row_of(a.g, p, tap)) + offset.at(i), a.g.height, false),
          Neighbours<A>(A(column_of(a.g, p, tap)) + offset.at(i + offset.c), a.g.width, false)};
}

// The coefficients of the four samples that a tap lies between, and their derivatives, for the threads of a block:
// corner j is y's j / 2 and x's j % 2.
template <class A>
struct alignas(16) Corners {
  A y[2], x[2], slope_y[2], slope_x[2];

  DK_DEVICE explicit Corners(const Axes<A>& axes) {
    for (int j = 0; j < 2; ++j) {
      y[j] = axes.y.value[j], x[j] = axes.x.value[j];
      slope_y[j] = axes.y.slope[j], slope_x[j] = axes.x.slope[j];
    }
  }

  DK_DEVICE A value(int j) const { return y[j / 2] * x[j % 2]; }

  // Sums over the corners of `dots` times the coefficients' derivatives.
  DK_DEVICE A along_y(const A (&dots)[4]) const {
    A sum = 0;
    for (int j = 0; j < 4; ++j) sum += slope_y[j / 2] * x[j % 2] * dots[j];
    return sum;
  }
  DK_DEVICE A along_x(const A (&dots)[4]) const {
    A sum = 0;
    for (int j = 0; j < 4; ++j) sum += y[j / 2] * slope_x[j % 2] * dots[j];
    return sum;
  }
};

// In the scope. One that is not there has a coefficient of zero and the place of one that is.
template <class A>
struct ScopeCorners : Corners<A> {
  int sample[4];

  DK_DEVICE explicit ScopeCorners(const Axes<A>& axes) : Corners<A>(axes) {
    for (int j = 0; j < 4; ++j) sample[j] = axes.y.nearest(j / 2) * axes.x.size + axes.x.nearest(j % 2);
  }
};

// Channels of the pixel at an element of memory, zero where that is -1. Without a branch, so that many loads are under
// way: the first pixel is always there.
template <class T, class A, int kChannels>
DK_DEVICE void read_pixel(const T* from, int64_t at, A (&to)[kChannels]) {
  read_vector(from + (at < 0 ? 0 : at), to);
  for (int v = 0; v < kChannels; ++v) to[v] = at < 0 ? A(0) : to[v];
}

// What a tap reads of the image: a pixel, or with data offsets four. Places are elements of memory with the strides of
// `view` without channels, -1 for what is outside.
template <class A, bool kData>
struct Reading {
  int64_t at;

  template <class T, class V>
  DK_DEVICE Reading(const Call<T, A>& a, const V& view, const Place& p, const Tap& tap) {
    const int64_t row = row_of(a.g, p, tap), column = column_of(a.g, p, tap);
    const bool there = row >= 0 && row < a.g.height && column >= 0 && column < a.g.width;
    at = there ? p.n * view.n + row * view.h + column * view.w : -1;
  }

  template <class T, int kChannels>
  DK_DEVICE void read(const T* from, A (&to)[kChannels]) const {
    read_pixel(from, at, to);
  }
};

template <class A>
struct Reading<A, true> : Corners<A> {
  int64_t at[4];

  template <class T, class V>
  DK_DEVICE Reading(const Call<T, A>& a, const V& view, const Place& p, const Tap& tap)
      : Reading(in_image(a, p, tap), view, p.n) {}

  template <class V>
  DK_DEVICE Reading(const Axes<A>& axes, const V& view, int n) : Corners<A>(axes) {
    for (int j = 0; j < 4; ++j) {
      const bool there = axes.y.is_near(j / 2) && axes.x.is_near(j % 2);
      at[j] = there ? n * view.n + (axes.y.lower + j / 2) * view.h + (axes.x.lower + j % 2) * view.w : -1;
    }
  }

  template <class T, int kChannels>
  DK_DEVICE void read(const T* from, A (&to)[kChannels]) const {
    for (int v = 0; v < kChannels; ++v) to[v] = 0;
    for (int j = 0; j < 4; ++j) {
      A pixel[kChannels];
      read_pixel(from, at[j], pixel);
      for (int v = 0; v < kChannels; ++v) to[v] += this->value(j) * pixel[v];
    }
  }
};

// How work is cut into blocks: tiles of rows, which are positions or pixels, and chunks of channels. Threads of a block
// run along vectors of adjacent channels, 1 << lane_bits lanes and no more than a warp, then along rows; while they
// prepare, along rows, then along taps.
struct Cut {
  int channels, count, tiles, chunks, lane_bits, vector, taps_at_once;  // count: of rows in all

  Cut(const UnfoldOperator& op, int64_t count_, int vector_)
      : channels(int(op.g.channels)), count(int(count_)), lane_bits(kLeastLaneBits), vector(vector_), taps_at_once(1) {
    const int vectors = channels / vector;
    while (lanes() < vectors && lanes() < kWarp) ++lane_bits;
    tiles = int(pieces(count, rows())), chunks = int(pieces(vectors, lanes()));
  }

  // Keeps as many taps of every row at a time as the aim allows, of so many bytes each.
  Cut& keep(const Geometry& g, size_t bytes) {
    taps_at_once = int(std::clamp<int64_t>(kSharedBytes / (rows() * bytes), 1, g.taps()));
    return *this;
  }

  DK_HOST_DEVICE int lanes() const { return 1 << lane_bits; }
  DK_HOST_DEVICE int rows() const { return kThreads >> lane_bits; }
  DK_DEVICE int lane() const { return device::thread() & (lanes() - 1); }
  DK_DEVICE int row() const { return device::thread() >> lane_bits; }
  DK_DEVICE int channel(int chunk) const { return (chunk * lanes() + lane()) * vector; }
  DK_DEVICE int taps_from(const Geometry& g, int first) const {
    return int(g.taps()) - first < taps_at_once ? int(g.taps()) - first : taps_at_once;
  }

  // Calls f(row, slot) for the rows of a block and so many slots for taps, shared by its threads: one row each.
  template <class F>
  DK_DEVICE void for_slots(int taps, const F& f) const {
    const int row = device::thread() & (rows() - 1);
    for (int slot = device::thread() >> (kThreadBits - lane_bits); slot < taps; slot += lanes()) f(row, slot);
  }
};

// Starts a kernel with a block for each of `parts` of `units`, or with fewer blocks that stride over them.
template <class Arguments>
void launch_units(const char* name, void (*kernel)(Arguments), int64_t units, int64_t parts, size_t shared,
                  void* stream, const Arguments& arguments) {
  check_number(name, "blocks", units * parts);
  if (units * parts == 0) return;
  launch(name, kernel, std::min(units * parts, kMaxBlocks), 1, kThreads, shared, stream, arguments);
}

// Calls f(place, tap, i) for taps from `first` on at the piece's positions from `position` on, which have the rows of a
// block; i counts slots of taps, then rows.
template <class T, class A, class F>
DK_DEVICE void for_taps(const Call<T, A>& a, const Cut& cut, int position, int first, int taps, const F& f) {
  cut.for_slots(taps, [&](int row, int slot) {
    if (position + row < a.count) f(place(a, position + row), Tap(a.g, first + slot), slot * cut.rows() + row);
  });
}

// Calls f with the number of channels that threads take as a vector: one, where memory has none.
template <class T, class F>
void with_vectors(bool there, const F& f) {
  if (there)
    f(std::integral_constant<int, kVector<T>>());
  else
    f(std::integral_constant<int, 1>());
}

// Whether a group's channels of columns are read and written by vectors.
inline bool has_vectors_of_columns(const UnfoldOperator& op, const Tensor& columns) {
  return op.g.channels / op.groups % (16 / columns.element_size()) == 0 &&
      reinterpret_cast<uintptr_t>(columns.data_ptr()) % 16 == 0;
}

}  // namespace dk::unfold
