// Where the taps of a row lie: offsets turned into indices and coefficients. row_kernels.h includes it in its namespace.

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
