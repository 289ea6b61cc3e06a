// The backward half of cpu_kernels.h, which includes it inside its namespace.

// Which gradients are wanted. Usually all are, and then the compiler knows: kAll.
struct Wanted {
  bool x, data_offset, kernel_offset;
};

// Dots of one tap, of vectors' lanes each for itself: with four corners in the columns, then with four in the image.
// Where a run is all of the channels, and whole vectors, they need not be kept, but are summed at once.
template <class A>
struct Dots {
  A* lanes;       // 8 vectors, `width` apart
  A* sums;        // 8, kLanes apart
  bool is_first;  // of the runs
  bool is_whole;

  static constexpr int64_t width = DK_BYTES / sizeof(A);

  void sum(const Four<typename VectorOf<A>::type>& dots, int64_t first) const {
    const auto four = sum_lanes(dots);
    A* to = sums + first * kLanes;
    to[0] = four.a, to[kLanes] = four.b, to[2 * kLanes] = four.c, to[3 * kLanes] = four.d;
  }

  void sum_kept(int64_t first) const { sum(load_four<typename VectorOf<A>::type>(lanes + first * width), first); }

  template <class V>
  Four<V> start(int64_t first) const {
    return is_first ? Four<V>{} : load_four<V>(lanes + first * width, width);
  }

  template <class V>
  void finish(const Four<V>& dots, int64_t first) const {
    if constexpr (sizeof(V) == DK_BYTES)
      if (is_whole) return sum(dots, first);
    store_four(lanes + first * width, dots, width);
  }

  Dots afterwards() const { return {lanes, sums, false, false}; }
};

template <class V>
inline void add_products(Four<V>& sum, const V& of, const Four<V>& v) {
  sum.a += of * v.a, sum.b += of * v.b, sum.c += of * v.c, sum.d += of * v.d;
}

// Channels c to n of one tap: the gradient of what it read goes to the image, and for the offsets there are dots.
template <class A, class V, bool DATA, bool kAll>
inline void gather_tap(const Tap<A, DATA>& tap, A* const* grad_x, const Dots<A>& dots, Wanted wanted, int64_t c,
                       int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  const bool of_x = kAll || wanted.x, of_kernel = kAll || wanted.kernel_offset;
  const bool of_data = DATA && (kAll || wanted.data_offset);
  if (c + lanes <= n) {
    const Four<V> coef = spread_coefficients<V>(tap.coef);
    const Four<V> image_coef = DATA ? spread_coefficients<V>(tap.image_coef) : Four<V>{};
    Four<V> with_columns = dots.template start<V>(0), with_pixels = DATA ? dots.template start<V>(4) : Four<V>{};
    const auto add = [&](A* to, const V& value) { store(to, V(load<V>(to) + value)); };
    for (; c + lanes <= n; c += lanes) {
      const Four<V> columns = load_from<V, A>(tap.columns, c);
      if (of_kernel) add_products(with_columns, read_pixels<V>(tap, image_coef, c), columns);
      const V grad = blended(columns, coef);
      if constexpr (DATA) {
        if (of_data) add_products(with_pixels, grad, load_from<V, A>(tap.x, c));
        if (!of_x) continue;
        add(grad_x[0] + c, image_coef.a * grad), add(grad_x[1] + c, image_coef.b * grad);
        add(grad_x[2] + c, image_coef.c * grad), add(grad_x[3] + c, image_coef.d * grad);
      } else if (of_x) {
        add(grad_x[0] + c, grad);
      }
    }
    if (of_kernel) dots.finish(with_columns, 0);
    if (of_data) dots.finish(with_pixels, 4);
  }
  if constexpr (lanes > 1)
    if (c < n) gather_tap<A, decltype(half_of<V, A>()), DATA, kAll>(tap, grad_x, dots.afterwards(), wanted, c, n);
}

// The gradients of an offset, of dots with what the corners hold: [tap][8][position], from `sums` on four of them.
template <class A>
DK_NOINLINE void finish_offset(const Corners<A>& corners, const A* sums, int64_t taps, A* grad) {
  for (int64_t tap = 0; tap < taps; ++tap, sums += 8 * kLanes, grad += 2 * kLanes) {
    const A *along_y = corners.along_y + 4 * tap * kLanes, *along_x = corners.along_x + 4 * tap * kLanes;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kLanes; ++p) {
      A y = 0, x = 0;
      for (int64_t j = p; j < p + 4 * kLanes; j += kLanes) y += along_y[j] * sums[j], x += along_x[j] * sums[j];
      grad[p] = y, grad[p + kLanes] = x;
    }
  }
}

template <class A, bool DATA, bool kAll>
inline void gather_position(const UnfoldBlock<A>& b, const Taps<A, DATA>& taps, int64_t p, Wanted wanted, A* lanes,
                            A* sums) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t width = Dots<A>::width, corners = DATA ? 4 : 1;
  const int64_t count = b.g->taps(), size = b.g->scope_h * b.g->scope_w * b.depth;
  const bool is_whole = b.run_count == 1 && b.runs->count % width == 0;
  const bool has_short = b.run_count == 0 || b.runs->count < width;  // the first sets no whole vectors
  if (has_short) __builtin_memset(lanes, 0, 8 * count * width * sizeof(A));
  for (const Run* run = b.runs; run < b.runs + b.run_count; ++run)
    for (int64_t tap = 0; tap < count; ++tap) {
      const int64_t at = 4 * tap * kLanes + p;
      if (taps.is_outside(at)) continue;
      A* grad_x[corners];
      for (int j = 0; j < corners; ++j) {
        const int64_t pixel = taps.image.at[at + j * kLanes];
        grad_x[j] = (DATA && pixel < 0) || !b.grad_x ? b.unread : b.grad_x + pixel * b.grad_step + run->channel;
      }
      const Tap<A, DATA> here(b, taps, at, run->channel, b.columns + p * size + run->at);
      const Dots<A> dots{lanes + 8 * tap * width, sums + 8 * tap * kLanes + p, run == b.runs && !has_short, is_whole};
      gather_tap<A, V, DATA, kAll>(here, grad_x, dots, wanted, 0, run->count);
    }
  for (int64_t tap = 0; !is_whole && tap < count; ++tap) {
    if (taps.is_outside(4 * tap * kLanes + p)) continue;
    const Dots<A> dots{lanes + 8 * tap * width, sums + 8 * tap * kLanes + p, false, false};
    if (kAll || wanted.kernel_offset) dots.sum_kept(0);
    if (DATA && (kAll || wanted.data_offset)) dots.sum_kept(4);
  }
}

template <class A, bool DATA>
void unfold_backward(const UnfoldBlock<A>& b) {
  const int64_t count = b.g->taps();
  const Taps<A, DATA> taps(b);
  taps.template decode<true>(b);
  A* sums = b.scratch + 32 * count * kLanes;
  A* lanes = sums + 8 * count * kLanes;
  __builtin_memset(sums, 0, 8 * count * kLanes * sizeof(A));
  const Wanted wanted{b.grad_x != nullptr, b.grad_data_offset != nullptr, b.grad_kernel_offset != nullptr};
  const bool all = wanted.x && wanted.kernel_offset && (!DATA || wanted.data_offset);
  for (int64_t p = 0; p < b.positions; ++p)
    if (all)
      gather_position<A, DATA, true>(b, taps, p, wanted, lanes, sums);
    else
      gather_position<A, DATA, false>(b, taps, p, wanted, lanes, sums);
  if (b.grad_kernel_offset) finish_offset(taps.scope, sums, count, b.grad_kernel_offset);
  if (b.grad_data_offset) finish_offset(taps.image, sums + 4 * kLanes, count, b.grad_data_offset);
}
