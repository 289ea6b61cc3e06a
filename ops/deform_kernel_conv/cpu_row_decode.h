// Where the taps of a row lie: offsets turned into indices and coefficients. cpu_row_kernels.h includes it in its
// namespace.

// The taps of kPositions positions, decoded for the backward pass. Arrays are [tap][(corner)][position].
template <class A>
struct Decoded {
  typedef typename Index<A>::type I;  // as wide as A, so that the decoding loops vectorise
  I* data_index;                      // pixels: four corners'; -1: outside
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

// A tap in the scope at one position: the table's element of its first corner, and where it lies among the four.
template <class A>
struct KernelTap {
  typename Index<A>::type index;
  A fy, fx, slope_y, slope_x;
};

template <class A>
static inline KernelTap<A> kernel_tap(const Geometry& g, const Table& table, A cy, A cx, bool clip) {
  const Axis<A> y = scope_axis<A>(cy, g.scope_h, clip), x = scope_axis<A>(cx, g.scope_w, clip);
  const int32_t border = int32_t(table.border), width = int32_t(table.width);
  return {((y.lower + border) * width + x.lower + border) * int32_t(kBlock), y.fraction, x.fraction, y.slope, x.slope};
}

// A tap in the image at one position: its four pixels (-1: outside, read as zeros), and where it lies among them.
template <class A>
struct DataTap {
  typename Index<A>::type pixel[4];
  A fy, fx;
};

template <class A>
static inline DataTap<A> data_tap(const Geometry& g, A y, A x) {
  typedef typename Index<A>::type I;
  const I height = I(g.height), width = I(g.width);
  const bool inside = (y >= -1) & (y < A(g.height)) & (x >= -1) & (x < A(g.width));
  y = inside ? y : A(0), x = inside ? x : A(0);
  const I ty = I(y), tx = I(x);
  const I y0 = ty - (y < A(ty)), x0 = tx - (x < A(tx));
  const bool up = inside & (y0 >= 0), down = inside & (y0 + 1 < height);
  const bool left = x0 >= 0, right = x0 + 1 < width;
  const I corner = y0 * width + x0;
  return {{up & left ? corner : I(-1), up & right ? corner + 1 : I(-1), down & left ? corner + width : I(-1),
           down & right ? corner + width + 1 : I(-1)},
          y - A(y0),
          x - A(x0)};
}

// Where a tap stands before an offset moves it: in the scope, and in the image at output position (h, w0).
template <class A>
struct Rest {
  A y, x;
};

template <class A>
static inline Rest<A> rest_in_scope(const Geometry& g, int64_t tap) {
  return {A(tap / g.kernel_w) + A(g.scope_h - g.kernel_h) / 2, A(tap % g.kernel_w) + A(g.scope_w - g.kernel_w) / 2};
}

template <class A>
static inline Rest<A> rest_in_image(const Geometry& g, int64_t tap, int64_t h, int64_t w0) {
  return {A(h * g.stride_h - g.pad_h + (tap / g.kernel_w) * g.dilation_h),
          A(w0 * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w)};
}

template <class A, bool CLIP>
DK_NOINLINE static void decode_kernel_offset(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  const Geometry& g = *row.g;
  const Table table(g, true);
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const Rest<A> rest = rest_in_scope<A>(g, tap);
    const A* dy = row.kernel_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    const int64_t at = tap * kPositions;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kPositions; ++p) {
      const KernelTap<A> t = kernel_tap<A>(g, table, dy[p] + rest.y, dx[p] + rest.x, CLIP);
      d.kernel_index[at + p] = t.index;
      store_coefficients(d.kernel_coef + 4 * at, p, t.fy, t.fx);
      d.kernel_fy[at + p] = t.fy, d.kernel_fx[at + p] = t.fx;
      d.slope_y[at + p] = t.slope_y, d.slope_x[at + p] = t.slope_x;
    }
  }
}

template <class A>
DK_NOINLINE static void decode_data_offset(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  const Geometry& g = *row.g;
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const Rest<A> rest = rest_in_image<A>(g, tap, row.h, w0);
    const A* dy = row.data_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    const int64_t at = tap * kPositions;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kPositions; ++p) {
      const DataTap<A> t = data_tap<A>(g, rest.y + dy[p], rest.x + A(p * g.stride_w) + dx[p]);
      for (int j = 0; j < 4; ++j) d.data_index[4 * at + p + j * kPositions] = t.pixel[j];
      store_coefficients(d.data_coef + 4 * at, p, t.fy, t.fx);
      d.data_fy[at + p] = t.fy, d.data_fx[at + p] = t.fx;
    }
  }
}

template <class A, bool DATA, bool KERNEL>
static inline void decode(const Row<A>& row, int64_t w0, const Decoded<A>& d) {
  if (DATA) decode_data_offset(row, w0, d);
  if (KERNEL && row.g->clip) decode_kernel_offset<A, true>(row, w0, d);
  if (KERNEL && !row.g->clip) decode_kernel_offset<A, false>(row, w0, d);
}

// A tap that data offsets do not move, inside the image.
struct RestingTap {
  int64_t tap;   // times kPositions
  int64_t from;  // elements from the first tap's pixel to this one's
};

// The taps of kPositions positions as the forward pass reads them. Arrays are [tap][position](corner).
template <class A>
struct PackedTaps {
  A *data_coef, *kernel_coef;               // 4 each
  const A** pixels;                         // 4: of the image's first channel, or zeros
  typename Index<A>::type* kernel_index;    // elements of the table
  RestingTap* resting;                      // lists for [position], without data offsets
  const RestingTap* first_tap[kPositions];  // of each position
  int64_t number_of_taps[kPositions];

  PackedTaps(A* scratch, int64_t taps) {
    const int64_t unit = taps * kPositions;
    data_coef = scratch, kernel_coef = scratch + 4 * unit;
    kernel_index = reinterpret_cast<typename Index<A>::type*>(scratch + 8 * unit);
    pixels = reinterpret_cast<const A**>(scratch + 9 * unit + unit % 2);
    resting = reinterpret_cast<RestingTap*>(pixels);
  }
};

// Numbers of kPositions positions, [corner][position], to [position][corner].
template <class T>
static inline void interleave(const T* from, T* to) {
  if constexpr (sizeof(T) == 4) {
    typedef T Quad __attribute__((vector_size(16)));
    for (int64_t p = 0; p < kPositions; p += 4, to += 16) {
      const Quad a = load<Quad>(from + p), b = load<Quad>(from + p + kPositions);
      const Quad c = load<Quad>(from + p + 2 * kPositions), d = load<Quad>(from + p + 3 * kPositions);
      const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Quad ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      store(to, Quad(__builtin_shufflevector(ab, cd, 0, 1, 4, 5)));
      store(to + 4, Quad(__builtin_shufflevector(ab, cd, 2, 3, 6, 7)));
      store(to + 8, Quad(__builtin_shufflevector(ef, gh, 0, 1, 4, 5)));
      store(to + 12, Quad(__builtin_shufflevector(ef, gh, 2, 3, 6, 7)));
    }
  } else {
    for (int64_t p = 0; p < kPositions; ++p)
      for (int64_t j = 0; j < 4; ++j) to[4 * p + j] = from[j * kPositions + p];
  }
}

template <class A, bool CLIP>
DK_NOINLINE static void pack_kernel_taps(const Row<A>& row, int64_t w0, const PackedTaps<A>& to) {
  const Geometry& g = *row.g;
  const Table table(g, true);
  alignas(64) A coef[4 * kPositions];
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const Rest<A> rest = rest_in_scope<A>(g, tap);
    const A* dy = row.kernel_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    const int64_t at = tap * kPositions;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kPositions; ++p) {
      const KernelTap<A> t = kernel_tap<A>(g, table, dy[p] + rest.y, dx[p] + rest.x, CLIP);
      to.kernel_index[at + p] = t.index;
      store_coefficients(coef, p, t.fy, t.fx);
    }
    interleave(coef, to.kernel_coef + 4 * at);
  }
}

template <class A>
DK_NOINLINE static void pack_data_taps(const Row<A>& row, int64_t w0, const PackedTaps<A>& to) {
  typedef typename Index<A>::type I;
  const Geometry& g = *row.g;
  // Addresses as integers, or the compiler does not vectorise.
  const intptr_t zeros = reinterpret_cast<intptr_t>(row.zeros), image = reinterpret_cast<intptr_t>(row.x);
  const int64_t step = row.x_step * int64_t(sizeof(A));
  intptr_t* pixels = reinterpret_cast<intptr_t*>(to.pixels);
  alignas(64) A coef[4 * kPositions];
  alignas(64) I pixel[4 * kPositions], packed[4 * kPositions];
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const Rest<A> rest = rest_in_image<A>(g, tap, row.h, w0);
    const A* dy = row.data_offset + 2 * tap * row.offset_step + w0;
    const A* dx = dy + row.offset_step;
    DK_INDEPENDENT
    for (I p = 0; p < I(kPositions); ++p) {
      const DataTap<A> t = data_tap<A>(g, rest.y + dy[p], rest.x + A(p * I(g.stride_w)) + dx[p]);
      for (int j = 0; j < 4; ++j) pixel[j * kPositions + p] = t.pixel[j];
      store_coefficients(coef, p, t.fy, t.fx);
    }
    interleave(coef, to.data_coef + 4 * tap * kPositions);
    interleave(pixel, packed);
    DK_INDEPENDENT
    for (int64_t i = 0; i < 4 * kPositions; ++i) {
      const intptr_t address = image + int64_t(packed[i]) * step;
      pixels[4 * tap * kPositions + i] = packed[i] < 0 ? zeros : address;
    }
  }
}

// The taps inside the image of the output position whose first tap is pixel (y, x); how many they are.
template <class A>
static inline int64_t list_resting_taps(const Row<A>& row, int64_t y, int64_t x, RestingTap* to) {
  const Geometry& g = *row.g;
  int64_t count = 0;
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    const int64_t dy = i * g.dilation_h;
    if (y + dy < 0 || y + dy >= g.height) continue;
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      const int64_t dx = j * g.dilation_w;
      if (x + dx < 0 || x + dx >= g.width) continue;
      to[count++] = {(i * g.kernel_w + j) * kPositions, (dy * g.width + dx) * row.x_step};
    }
  }
  return count;
}

template <class A>
DK_NOINLINE static void pack_resting_taps(const Row<A>& row, int64_t w0, PackedTaps<A>& to) {
  const Geometry& g = *row.g;
  const int64_t y = row.h * g.stride_h - g.pad_h, reach = (g.kernel_w - 1) * g.dilation_w;
  int64_t inner = -1;  // a position with all columns inside: such ones share a list
  for (int64_t p = 0; p < kPositions && w0 + p < g.out_width; ++p) {
    const int64_t x = (w0 + p) * g.stride_w - g.pad_w;
    const bool is_inner = x >= 0 && x + reach < g.width;
    if (is_inner && inner >= 0) {
      to.first_tap[p] = to.first_tap[inner], to.number_of_taps[p] = to.number_of_taps[inner];
      continue;
    }
    if (is_inner) inner = p;
    RestingTap* list = to.resting + p * g.taps();
    to.first_tap[p] = list, to.number_of_taps[p] = list_resting_taps(row, y, x, list);
  }
}

template <class A, bool DATA, bool KERNEL>
static inline void pack_taps(const Row<A>& row, int64_t w0, PackedTaps<A>& to) {
  if (DATA)
    pack_data_taps(row, w0, to);
  else
    pack_resting_taps(row, w0, to);
  if (KERNEL && row.g->clip) pack_kernel_taps<A, true>(row, w0, to);
  if (KERNEL && !row.g->clip) pack_kernel_taps<A, false>(row, w0, to);
}
