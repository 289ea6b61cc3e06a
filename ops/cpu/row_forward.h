// The forward half of row_kernels.h, which includes it inside its namespace.

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
