// The backward half of row_kernels.h, which includes it inside its namespace.
//
// One pass over the taps gives all gradients. With g = dL/dout, x_k the value a tap read and W_s the kernel's corners:
//   u = g x_k,   dL/dW_s += B_k[s] u,   dL/dx += g W'_k,   and the offsets' from the dots <u, W_s>, one a corner.

// Which gradients are wanted. Usually all are, and then the compiler knows: kAll.
struct Wanted {
  bool x, weight, data_offset, kernel_offset;

  bool all() const { return x && weight && data_offset && kernel_offset; }
};

// What the offsets' gradients need: for each corner, the sum over channels.
template <class A>
struct Dots {
  A kernel[4] = {}, data[4] = {};
};

// Pointers and coefficients of one tap at one position.
template <class A>
struct TapPointers {
  const A* grad;
  const A* x[4];  // only the first without data offsets
  A* grad_x[4];
  A data_coef[4];
  const A* w[4];  // only the first without kernel offsets
  A* grad_w[4];
  A kernel_coef[4];
};

// Four vectors by name: an array would live in memory, and the sums below would wait for it.
template <class V>
struct Four {
  V a = {}, b = {}, c = {}, d = {};
};

template <class A, class V>
static inline void load_four(Four<V>& to, const A* const from[4], int64_t c) {
  to.a = load<V>(from[0] + c), to.b = load<V>(from[1] + c), to.c = load<V>(from[2] + c), to.d = load<V>(from[3] + c);
}

template <class A, class V>
static inline V weighted(const Four<V>& v, const A coef[4]) {
  return (coef[0] * v.a + coef[1] * v.b) + (coef[2] * v.c + coef[3] * v.d);
}

template <class V>
static inline void add_products(Four<V>& sum, V u, const Four<V>& v) {
  sum.a += u * v.a, sum.b += u * v.b, sum.c += u * v.c, sum.d += u * v.d;
}

template <class A, class V>
static inline void add_to_memory(A* to, V v) {
  store(to, load<V>(to) + v);
}

// The sums of the lanes of four vectors, together: half the instructions of one after the other.
template <class V>
static inline auto sum_lanes(const Four<V>& v) {
  constexpr int lanes = sizeof(V) / sizeof(v.a[0]);
  if constexpr (lanes == 2) {
    typedef decltype(v.a[0] + v.a[0]) A;
    return Four<A>{fold(v.a), fold(v.b), fold(v.c), fold(v.d)};
  } else if constexpr (lanes == 4 && sizeof(V) == 16) {
    const V ab = __builtin_shufflevector(v.a, v.b, 0, 4, 1, 5) + __builtin_shufflevector(v.a, v.b, 2, 6, 3, 7);
    const V cd = __builtin_shufflevector(v.c, v.d, 0, 4, 1, 5) + __builtin_shufflevector(v.c, v.d, 2, 6, 3, 7);
    const V all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    return Four<float>{all[0], all[1], all[2], all[3]};
  } else {
    typedef decltype(fold(v.a)) Half;
    return sum_lanes(Four<Half>{fold(v.a), fold(v.b), fold(v.c), fold(v.d)});
  }
}

template <class A, class V>
static inline void add_lanes(A sum[4], const Four<V>& v) {
  if constexpr (sizeof(V) == sizeof(A)) {
    sum[0] += v.a, sum[1] += v.b, sum[2] += v.c, sum[3] += v.d;
  } else {
    const Four<A> lanes = sum_lanes(v);
    sum[0] += lanes.a, sum[1] += lanes.b, sum[2] += lanes.c, sum[3] += lanes.d;
  }
}

// As many whole vectors V of channels from c on as there are; moves c.
template <class A, bool DATA, bool KERNEL, bool kAll, class V>
static inline void backward_vectors(const TapPointers<A>& t, const Wanted& wanted, int64_t& c, int64_t channels,
                                    Dots<A>& dots) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  if (c + lanes > channels) return;
  const bool of_x = kAll || wanted.x, of_weight = kAll || wanted.weight;
  const bool of_data = kAll || wanted.data_offset, of_kernel = kAll || wanted.kernel_offset;
  const bool of_kernel_side = of_weight || of_kernel, of_data_side = of_x || of_data;
  Four<V> kernel_dot, data_dot, corner_x, corner_w;
  for (; c + lanes <= channels; c += lanes) {
    const V g = load<V>(t.grad + c);
    if constexpr (DATA)
      if (of_kernel_side || of_data) load_four(corner_x, t.x, c);
    if constexpr (KERNEL)
      if (of_data_side || of_kernel) load_four(corner_w, t.w, c);
    if (of_kernel_side) {
      V read;
      if constexpr (DATA)
        read = weighted(corner_x, t.data_coef);
      else
        read = load<V>(t.x[0] + c);
      const V u = g * read;
      if constexpr (KERNEL) {
        if (of_kernel) add_products(kernel_dot, u, corner_w);
        if (of_weight)
          for (int j = 0; j < 4; ++j) add_to_memory(t.grad_w[j] + c, V(t.kernel_coef[j] * u));
      } else {
        add_to_memory(t.grad_w[0] + c, u);
      }
    }
    if (!of_data_side) continue;
    V weight;
    if constexpr (KERNEL)
      weight = weighted(corner_w, t.kernel_coef);
    else
      weight = load<V>(t.w[0] + c);
    const V grad_read = g * weight;
    if constexpr (DATA) {
      if (of_data) add_products(data_dot, grad_read, corner_x);
      if (of_x)
        for (int j = 0; j < 4; ++j) add_to_memory(t.grad_x[j] + c, V(t.data_coef[j] * grad_read));
    } else {
      add_to_memory(t.grad_x[0] + c, grad_read);
    }
  }
  if (KERNEL) add_lanes(dots.kernel, kernel_dot);
  if (DATA) add_lanes(dots.data, data_dot);
}

// From the corners' dots to the gradient of (dy, dx).
template <class A>
static inline void offset_gradient(const A dot[4], A fy, A fx, A slope_y, A slope_x, A* dy, A* dx) {
  *dy = slope_y * ((1 - fx) * (dot[2] - dot[0]) + fx * (dot[3] - dot[1]));
  *dx = slope_x * ((1 - fy) * (dot[1] - dot[0]) + fy * (dot[3] - dot[2]));
}

template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_tap(const Row<A>& row, const Wanted& wanted, const Decoded<A>& d, const Table& table,
                                int64_t tap, int64_t w0, int64_t p, const A* zeros, A* dump) {
  typedef typename VectorOf<A>::type V;
  const int64_t at = tap * kPositions + p, out = 2 * tap * row.offset_step + w0 + p;
  TapPointers<A> t;
  t.grad = row.grad + (w0 + p) * row.grad_step;
  if constexpr (DATA) {
    find_corners(d, tap, p, row.x, row.x_step, zeros, t.x, t.data_coef);
    for (int j = 0; j < 4; ++j) {  // outside the image there is no gradient to keep
      const int64_t pixel = d.data_index[(4 * tap + j) * kPositions + p];
      t.grad_x[j] = pixel < 0 || !(kAll || wanted.x) ? dump : row.grad_x + pixel * row.grad_x_step;
    }
  } else {
    const int64_t pixel = d.data_index[at];
    if (pixel < 0) {
      if (KERNEL && (kAll || wanted.kernel_offset))
        row.grad_kernel_offset[out] = row.grad_kernel_offset[out + row.offset_step] = 0;
      return;
    }
    t.x[0] = row.x + pixel * row.x_step;
    t.grad_x[0] = kAll || wanted.x ? row.grad_x + pixel * row.grad_x_step : dump;
  }
  A* pair = row.pair_table;
  const int64_t corner_step[4] = {0, kPair, table.width * kPair, (table.width + 1) * kPair};
  const int64_t first = KERNEL ? int64_t(d.kernel_index[at]) * 2 : tap * kPair;
  for (int j = 0; j < (KERNEL ? 4 : 1); ++j) {
    t.w[j] = pair + first + corner_step[j], t.grad_w[j] = pair + kBlock + first + corner_step[j];
    t.kernel_coef[j] = KERNEL ? d.kernel_coef[4 * tap * kPositions + j * kPositions + p] : A(1);
  }
  Dots<A> dots;
  int64_t c = 0;
  backward_vectors<A, DATA, KERNEL, kAll, V>(t, wanted, c, row.channels, dots);
  backward_vectors<A, DATA, KERNEL, kAll, A>(t, wanted, c, row.channels, dots);
  if (KERNEL && (kAll || wanted.kernel_offset))
    offset_gradient(dots.kernel, d.kernel_fy[at], d.kernel_fx[at], d.slope_y[at], d.slope_x[at],
                    row.grad_kernel_offset + out, row.grad_kernel_offset + out + row.offset_step);
  if (DATA && (kAll || wanted.data_offset))
    offset_gradient(dots.data, d.data_fy[at], d.data_fx[at], A(1), A(1), row.grad_data_offset + out,
                    row.grad_data_offset + out + row.offset_step);
}

template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_taps(const Row<A>& row, const Wanted& wanted) {
  const Geometry& g = *row.g;
  const Table table(g, KERNEL);
  const Decoded<A> d(row.scratch, g.taps());
  alignas(64) const A zeros[kBlock] = {};
  alignas(64) A dump[kBlock] = {};
  const int64_t taps = g.taps();
  for (int64_t w0 = 0; w0 < g.out_width; w0 += kPositions) {
    decode<A, DATA, KERNEL>(row, w0, d);
    const int64_t positions = g.out_width - w0 < kPositions ? g.out_width - w0 : kPositions;
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t tap = 0; tap < taps; ++tap)
        backward_tap<A, DATA, KERNEL, kAll>(row, wanted, d, table, tap, w0, p, zeros, dump);
  }
}

// At most kBlock channels.
template <class A, bool DATA, bool KERNEL>
static void backward_row(const Row<A>& row) {
  const Wanted wanted{row.grad_x != nullptr, row.wants_weight, !DATA || row.grad_data_offset,
                      !KERNEL || row.grad_kernel_offset};
  if (wanted.all())
    backward_taps<A, DATA, KERNEL, true>(row, wanted);
  else
    backward_taps<A, DATA, KERNEL, false>(row, {wanted.x, wanted.weight, DATA && wanted.data_offset, KERNEL && wanted.kernel_offset});
}
