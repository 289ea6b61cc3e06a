// The forward pass where nothing moves: a depthwise convolution. cpu_row_kernels.h includes it inside its namespace.

// U vectors V of channels, from c on, of P output positions `step` apart, which have the same taps inside the image.
// The weights of a tap are loaded once for all P.
template <class A, class V, int U, int P>
static inline void rigid_vectors(const Row<A>& row, const RestingTap* tap, const RestingTap* end, int64_t first,
                                 int64_t step, int64_t c, A* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  const A* x = row.x + c;
  const A* table = row.table + c / kBlock * row.g->taps() * kBlock + c % kBlock;
  V sum[P][U] = {};
  for (; tap < end; ++tap) {
    const A* from = x + (first + tap->from);
    const A* w = table + tap->tap / kPositions * kBlock;
    for (int u = 0; u < U; ++u) {
      const V weight = load<V>(w + u * lanes);
      for (int p = 0; p < P; ++p) sum[p][u] += load<V>(from + p * step + u * lanes) * weight;
    }
  }
  for (int p = 0; p < P; ++p)
    for (int u = 0; u < U; ++u) store(out + p * row.out_step + c + u * lanes, sum[p][u]);
}

template <class A, class V, int U, int P>
static inline void rigid_channels(const Row<A>& row, const RestingTap* taps, int64_t count, int64_t first, int64_t c,
                                  int64_t end, A* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A), wide = U * lanes;
  const int64_t step = row.g->stride_w * row.x_step;
  for (; c + wide <= end; c += wide) rigid_vectors<A, V, U, P>(row, taps, taps + count, first, step, c, out);
  if constexpr (U > 1)
    rigid_channels<A, V, U / 2, P>(row, taps, count, first, c, end, out);
  else if constexpr (lanes > 1)
    rigid_channels<A, decltype(half_of<V, A>()), 1, P>(row, taps, count, first, c, end, out);
}

template <class A>
static void rigid_row(const Row<A>& row) {
  typedef typename VectorOf<A>::type V;
  constexpr int together = 4, wide = DK_BYTES == 64 ? 4 : 2;  // sums that fit the registers
  const Geometry& g = *row.g;
  RestingTap* inner_taps = reinterpret_cast<RestingTap*>(row.scratch);
  RestingTap* edge_taps = inner_taps + g.taps();
  const int64_t y = row.h * g.stride_h - g.pad_h, reach = (g.kernel_w - 1) * g.dilation_w;
  const auto is_inner = [&](int64_t w) {
    const int64_t x = w * g.stride_w - g.pad_w;
    return x >= 0 && x + reach < g.width;
  };
  int64_t inner_count = -1;
  for (int64_t c = 0; c < row.channels; c += kSweep) {
    const int64_t end = row.channels - c < kSweep ? row.channels : c + kSweep;
    for (int64_t w = 0; w < g.out_width;) {
      const int64_t x = w * g.stride_w - g.pad_w, first = (y * g.width + x) * row.x_step;
      A* out = row.out + w * row.out_step;
      if (!is_inner(w)) {
        const int64_t count = list_resting_taps(row, y, x, edge_taps);
        rigid_channels<A, V, wide, 1>(row, edge_taps, count, first, c, end, out);
        ++w;
        continue;
      }
      if (inner_count < 0) inner_count = list_resting_taps(row, y, x, inner_taps);
      if (w + together <= g.out_width && is_inner(w + together - 1)) {
        rigid_channels<A, V, wide, together>(row, inner_taps, inner_count, first, c, end, out);
        w += together;
      } else {
        rigid_channels<A, V, wide, 1>(row, inner_taps, inner_count, first, c, end, out);
        ++w;
      }
    }
  }
}
