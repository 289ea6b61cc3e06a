// The backward pass where nothing moves: a tap's row of the table is one weight. cpu_row_kernels.h includes it inside
// its namespace.

// What one chunk and row of taps works on.
template <class A>
struct RigidRow {
  A* image;       // the row of the ring
  const A* grad;  // the output's row
  A* pair;        // the first tap's
};

// Taps j of `first` to first + T of a row of taps, at stride 1: over the pixels, whose gradient is loaded and stored
// once. A tap reads pixel q for output position q + pad - j * dilation; beyond the ends there are zeros.
template <class A, int T, bool kAll>
static inline void backward_taps_by_pixel(const BackwardRow<A>& row, const RigidRow<A>& r, int64_t first) {
  typedef Pack<A> P;
  constexpr int64_t chunk = kChunk<A>;
  const bool of_x = kAll || row.wants_x, of_weight = kAll || row.wants_weight;
  const int64_t step = row.g->dilation_w * chunk, width = row.g->width;
  A* pair = r.pair + first * 2 * chunk;
  A* pixel = r.image;
  const A* grad = r.grad + (row.g->pad_w - first * row.g->dilation_w) * chunk;
  const P w0 = load_pack(pair), w1 = load_pack(pair + (T > 1) * 2 * chunk), w2 = load_pack(pair + (T > 2) * 4 * chunk);
  P sum0 = {}, sum1 = {}, sum2 = {};
  for (int64_t q = 0; q < width; ++q, pixel += 2 * chunk, grad += chunk) {
    const P x = load_pack(pixel), g0 = load_pack(grad);
    P grad_x = load_pack(pixel + chunk) + g0 * w0;
    sum0 = sum0 + g0 * x;
    if constexpr (T > 1) {
      const P g1 = load_pack(grad - step);
      grad_x = grad_x + g1 * w1, sum1 = sum1 + g1 * x;
    }
    if constexpr (T > 2) {
      const P g2 = load_pack(grad - 2 * step);
      grad_x = grad_x + g2 * w2, sum2 = sum2 + g2 * x;
    }
    if (of_x) store_pack(pixel + chunk, grad_x);
  }
  if (!of_weight) return;
  add_to_memory(pair + chunk, sum0);
  if constexpr (T > 1) add_to_memory(pair + 3 * chunk, sum1);
  if constexpr (T > 2) add_to_memory(pair + 5 * chunk, sum2);
}

// One tap, at any stride: over the output's positions.
template <class A, bool kAll>
static inline void backward_tap(const BackwardRow<A>& row, const RigidRow<A>& r, int64_t tap) {
  typedef Pack<A> P;
  constexpr int64_t chunk = kChunk<A>;
  const Geometry& g = *row.g;
  const bool of_x = kAll || row.wants_x, of_weight = kAll || row.wants_weight;
  const Range range = positions_inside(g, tap, 0, g.out_width);
  const int64_t left = tap * g.dilation_w - g.pad_w, step = g.stride_w * 2 * chunk;
  A *pixel = r.image + (left + range.first * g.stride_w) * 2 * chunk, *pair = r.pair + tap * 2 * chunk;
  const A *grad = r.grad + range.first * chunk, *end = r.grad + range.end * chunk;
  const P weight = load_pack(pair);
  P even = {}, odd = {};  // one sum would wait for itself
  const auto add = [&](P& sum) {
    const P u = load_pack(grad);
    sum = sum + u * load_pack(pixel);
    if (of_x) add_to_memory(pixel + chunk, u * weight);
    grad += chunk, pixel += step;
  };
  while (grad + chunk < end) add(even), add(odd);
  if (grad < end) add(even);
  if (of_weight) add_to_memory(pair + chunk, even + odd);
}

template <class A, bool kAll>
static inline void backward_row_of_taps(const BackwardRow<A>& row, const RigidRow<A>& r) {
  const int64_t taps = row.g->kernel_w;
  int64_t tap = 0;
  if (row.g->stride_w == 1) {
    for (; tap + 3 <= taps; tap += 3) backward_taps_by_pixel<A, 3, kAll>(row, r, tap);
    if (tap + 2 == taps) backward_taps_by_pixel<A, 2, kAll>(row, r, tap);
    if (tap + 1 == taps) backward_taps_by_pixel<A, 1, kAll>(row, r, tap);
  } else {
    for (; tap < taps; ++tap) backward_tap<A, kAll>(row, r, tap);
  }
}

template <class A>
static void backward_rigid(const BackwardRow<A>& row) {
  const Geometry& g = *row.g;
  const int64_t step = 2 * kChunk<A>;
  for (int64_t c = 0; c < row.chunks; ++c)
    for (int64_t i = 0; i < g.kernel_h; ++i) {
      const int64_t y = ring_row(row, i * g.kernel_w);
      if (y < 0) continue;
      const RigidRow<A> r{row.image + c * row.plane + y * g.width * step, row.grad + c * row.grad_plane,
                          row.pair_table + (c * g.taps() + i * g.kernel_w) * step};
      if (row.wants_x && row.wants_weight)
        backward_row_of_taps<A, true>(row, r);
      else
        backward_row_of_taps<A, false>(row, r);
    }
}

template <class A, bool DATA, bool KERNEL>
static void backward_row(const BackwardRow<A>& row) {
  const Wanted wanted{row.wants_x, row.wants_weight, !DATA || row.grad_data_offset, !KERNEL || row.grad_kernel_offset};
  if constexpr (!DATA && !KERNEL)
    backward_rigid(row);
  else if (wanted.all())
    backward_moved<A, DATA, KERNEL, true>(row, wanted);
  else
    backward_moved<A, DATA, KERNEL, false>(row, wanted);
}
