// The row kernels, vectorised over channels. Included once for each instruction set: DK_ISA names its namespace and
// DK_BYTES is its vector width. Nothing here may call a function shared with other files (it would be compiled for
// this instruction set and could be linked into code that runs on less).
//
// Cost a tap and vector of channels, forward: 5 loads and 5 multiply-adds against 1 and 1 of a rigid depthwise
// convolution; backward: 10 loads, 5 stores, 14 multiply-adds.

#include "../axis.h"
#include "row.h"

// The next loop's iterations touch different memory: what the compiler must know to vectorise it.
#if defined(__clang__)
#define DK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DK_INDEPENDENT _Pragma("GCC ivdep")
#endif

// One copy of each, not one in every kernel: they are a small part of the time and most of the compiler's.
#define DK_NOINLINE __attribute__((noinline))

namespace dk {
namespace DK_ISA {

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(DK_BYTES)));
};

template <class V, class A>
static inline V load(const A* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class A>
static inline void store(A* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// The upper half of a vector added to its lower half. Not through memory: that would pin the vector there for its
// whole life.
template <class V>
static inline auto fold(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  if constexpr (lanes == 2)
    return v[0] + v[1];
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  else
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
        __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The taps of kPositions positions, decoded once for all channels. Arrays are [tap][(corner)][position].
template <class A>
struct Decoded {
  typedef typename Index<A>::type I;  // as wide as A, so that the decoding loops vectorise
  I* data_index;                      // pixels: with data offsets [tap][4][position], else [tap][position]; -1: outside
  A *data_coef, *data_fy, *data_fx;
  I* kernel_index;
  A *kernel_coef, *kernel_fy, *kernel_fx, *slope_y, *slope_x;

  Decoded(A* scratch, int64_t taps) {
    const int64_t unit = taps * kPositions;
    data_index = reinterpret_cast<I*>(scratch);
    data_coef = scratch + 4 * unit, data_fy = data_coef + 4 * unit, data_fx = data_fy + unit;
    kernel_index = reinterpret_cast<I*>(data_fx + unit);
    kernel_coef = data_fx + 2 * unit, kernel_fy = kernel_coef + 4 * unit, kernel_fx = kernel_fy + unit;
    slope_y = kernel_fx + unit, slope_x = slope_y + unit;
  }
};

template <class A>
static inline void store_coefficients(A* coef, int64_t p, A fy, A fx) {
  coef[p] = (1 - fy) * (1 - fx);
  coef[p + kPositions] = (1 - fy) * fx;
  coef[p + 2 * kPositions] = fy * (1 - fx);
  coef[p + 3 * kPositions] = fy * fx;
}

template <class A, bool CLIP>
DK_NOINLINE static void decode_kernel_offset(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  const Geometry& g = *row.g;
  const Table table(g, true);
  const int64_t taps = g.taps();
  for (int64_t tap = 0; tap < taps; ++tap) {
    const A rest_y = A(tap / g.kernel_w) + A(g.scope_h - g.kernel_h) / 2;
    const A rest_x = A(tap % g.kernel_w) + A(g.scope_w - g.kernel_w) / 2;
    const A* dy = row.kernel_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    const int64_t at = tap * kPositions;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kPositions; ++p) {
      const Axis<A> y = scope_axis<A>(dy[p] + rest_y, g.scope_h, CLIP);
      const Axis<A> x = scope_axis<A>(dx[p] + rest_x, g.scope_w, CLIP);
      d.kernel_index[at + p] =
          ((y.lower + int32_t(table.border)) * int32_t(table.width) + x.lower + int32_t(table.border)) * int32_t(kBlock);
      store_coefficients(d.kernel_coef + 4 * at, p, y.fraction, x.fraction);
      d.kernel_fy[at + p] = y.fraction, d.kernel_fx[at + p] = x.fraction;
      d.slope_y[at + p] = y.slope, d.slope_x[at + p] = x.slope;
    }
  }
}

template <class A>
DK_NOINLINE static void decode_data_offset(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  typedef typename Index<A>::type I;
  const Geometry& g = *row.g;
  const int64_t taps = g.taps();
  for (int64_t tap = 0; tap < taps; ++tap) {
    const A base_y = A(row.h * g.stride_h - g.pad_h + (tap / g.kernel_w) * g.dilation_h);
    const A base_x = A(w0 * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w);
    const A* dy = row.data_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    const int64_t at = tap * kPositions;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kPositions; ++p) {
      A y = base_y + dy[p], x = base_x + A(p * g.stride_w) + dx[p];
      const bool inside = (y >= -1) & (y < A(g.height)) & (x >= -1) & (x < A(g.width));
      y = inside ? y : A(0), x = inside ? x : A(0);
      const I ty = I(y), tx = I(x);
      const I y0 = ty - (y < A(ty)), x0 = tx - (x < A(tx));
      const bool up = inside & (y0 >= 0), down = inside & (y0 + 1 < g.height);
      const bool left = x0 >= 0, right = x0 + 1 < g.width;
      const I width = g.width, corner = y0 * width + x0;
      I* index = d.data_index + 4 * at + p;
      index[0] = up & left ? corner : I(-1);
      index[kPositions] = up & right ? corner + 1 : I(-1);
      index[2 * kPositions] = down & left ? corner + width : I(-1);
      index[3 * kPositions] = down & right ? corner + width + 1 : I(-1);
      const A fy = y - A(y0), fx = x - A(x0);
      store_coefficients(d.data_coef + 4 * at, p, fy, fx);
      d.data_fy[at + p] = fy, d.data_fx[at + p] = fx;
    }
  }
}

template <class A>
DK_NOINLINE static void decode_rigid_data(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  typedef typename Index<A>::type I;
  const Geometry& g = *row.g;
  const int64_t taps = g.taps();
  const I width = I(g.width), stride = I(g.stride_w);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t y = row.h * g.stride_h - g.pad_h + (tap / g.kernel_w) * g.dilation_h;
    const bool row_inside = y >= 0 && y < g.height;
    const I first = I(w0 * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w), start = I(row_inside ? y * g.width : 0);
    I* to = d.data_index + tap * kPositions;
    DK_INDEPENDENT
    for (I p = 0; p < I(kPositions); ++p) {
      const I x = first + p * stride;
      to[p] = row_inside & (x >= 0) & (x < width) ? start + x : I(-1);
    }
  }
}

template <class A, bool DATA, bool KERNEL>
static inline void decode(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  if (DATA)
    decode_data_offset(row, w0, d);
  else
    decode_rigid_data(row, w0, d);
  if (KERNEL) {
    if (row.g->clip)
      decode_kernel_offset<A, true>(row, w0, d);
    else
      decode_kernel_offset<A, false>(row, w0, d);
  }
}

// The four pixels around a moved tap. One outside the image is read as zeros.
template <class A>
static inline void find_corners(const Decoded<A>& d, int64_t tap, int64_t p, const A* image, int64_t step,
                                const A* zeros, const A* x[4], A coef[4]) {
  for (int j = 0; j < 4; ++j) {
    const int64_t at = (4 * tap + j) * kPositions + p, pixel = d.data_index[at];
    x[j] = pixel < 0 ? zeros : image + pixel * step;
    coef[j] = d.data_coef[at];
  }
}

// U vectors V of channels of one output position.
template <class A, bool DATA, bool KERNEL, class V, int U>
static inline void forward_vectors(
    const Geometry& g, const Decoded<A>& d, int64_t p, const A* image, int64_t step, const A* table, int64_t table_row,
    A* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  alignas(64) const A zeros[DATA ? U * lanes : 1] = {};
  const int64_t taps = g.taps();
  V sum[U] = {};
  for (int64_t tap = 0; tap < taps; ++tap) {
    V read[U];
    if constexpr (DATA) {
      const A* x[4];
      A coef[4];
      find_corners(d, tap, p, image, step, zeros, x, coef);
      for (int u = 0; u < U; ++u) {
        read[u] = coef[0] * load<V>(x[0] + u * lanes);
        for (int j = 1; j < 4; ++j) read[u] += coef[j] * load<V>(x[j] + u * lanes);
      }
    } else {
      const int64_t pixel = d.data_index[tap * kPositions + p];
      if (pixel < 0) continue;
      for (int u = 0; u < U; ++u) read[u] = load<V>(image + pixel * step + u * lanes);
    }
    if constexpr (KERNEL) {
      const A* w = table + d.kernel_index[tap * kPositions + p];
      const A* coef = d.kernel_coef + 4 * tap * kPositions + p;
      const A c0 = coef[0], c1 = coef[kPositions], c2 = coef[2 * kPositions], c3 = coef[3 * kPositions];
      for (int u = 0; u < U; ++u, w += lanes)
        sum[u] += read[u] * (c0 * load<V>(w) + c1 * load<V>(w + kBlock) + c2 * load<V>(w + table_row) +
                             c3 * load<V>(w + table_row + kBlock));
    } else {
      for (int u = 0; u < U; ++u) sum[u] += read[u] * load<V>(table + tap * kBlock + u * lanes);
    }
  }
  for (int u = 0; u < U; ++u) store(out + u * lanes, sum[u]);
}

template <class A, bool DATA, bool KERNEL>
static void forward_row(const Row<A>& row) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t lanes = sizeof(V) / sizeof(A), wide = 4;
  const Geometry& g = *row.g;
  const Table table(g, KERNEL);
  const int64_t table_row = table.width * kBlock;
  const Decoded<A> d(row.scratch, g.taps());
  for (int64_t w0 = 0; w0 < g.out_width; w0 += kPositions) {
    decode<A, DATA, KERNEL>(row, w0, d);
    const int64_t positions = g.out_width - w0 < kPositions ? g.out_width - w0 : kPositions;
    for (int64_t c0 = 0; c0 < row.channels; c0 += kBlock) {
      const int64_t channels = row.channels - c0 < kBlock ? row.channels - c0 : kBlock;
      const A* block = row.table + c0 * table.rows;
      for (int64_t p = 0; p < positions; ++p) {
        const A* image = row.x + c0;
        A* out = row.out + (w0 + p) * row.out_step + c0;
        int64_t c = 0;
        for (; c + wide * lanes <= channels; c += wide * lanes)
          forward_vectors<A, DATA, KERNEL, V, wide>(g, d, p, image + c, row.x_step, block + c, table_row, out + c);
        for (; c + lanes <= channels; c += lanes)
          forward_vectors<A, DATA, KERNEL, V, 1>(g, d, p, image + c, row.x_step, block + c, table_row, out + c);
        for (; c < channels; ++c)
          forward_vectors<A, DATA, KERNEL, A, 1>(g, d, p, image + c, row.x_step, block + c, table_row, out + c);
      }
    }
  }
}

#include "row_backward.h"

template <class A>
struct Variant {
  static constexpr RowKernels<A> kernels = {
      {{forward_row<A, false, false>, forward_row<A, false, true>},
       {forward_row<A, true, false>, forward_row<A, true, true>}},
      {{backward_row<A, false, false>, backward_row<A, false, true>},
       {backward_row<A, true, false>, backward_row<A, true, true>}}};
};

}  // namespace DK_ISA
}  // namespace dk
