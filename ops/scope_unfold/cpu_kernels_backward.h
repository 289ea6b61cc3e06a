// The backward half of cpu_kernels.h, which includes it inside its namespace.

// Which gradients are wanted. Usually all are, and then the compiler knows: kAll.
struct Wanted {
  bool x, data_offset, kernel_offset;
};

template <class V, class A>
inline V blended(const Four<V>& v, const A* coef) {
  return coef[0] * v.a + coef[1] * v.b + coef[2] * v.c + coef[3] * v.d;
}

template <class V>
inline void add_products(Four<V>& sum, const V& of, const Four<V>& v) {
  sum.a += of * v.a, sum.b += of * v.b, sum.c += of * v.c, sum.d += of * v.d;
}

template <class V, class A>
inline Four<V> load_from(const A* const* at, int64_t c) {
  return {load<V>(at[0] + c), load<V>(at[1] + c), load<V>(at[2] + c), load<V>(at[3] + c)};
}

// Channels c to n of one tap: the gradient of what it read goes to the image, and for the offsets dots with its corners
// are kept, lane by lane: 4 in the columns, 4 in the image.
template <class A, class V, bool DATA, bool kAll>
inline void gather_tap(const Tap<A, DATA>& tap, A* const* grad_x, A* kept, bool fresh, Wanted wanted, int64_t c,
                       int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A), width = DK_BYTES / sizeof(A);
  const bool of_x = kAll || wanted.x, of_kernel = kAll || wanted.kernel_offset;
  const bool of_data = DATA && (kAll || wanted.data_offset);
  if (c + lanes <= n) {
    Four<V> with_columns{}, with_pixels{};
    if (!fresh) {
      with_columns = load_four<V>(kept, width);
      if constexpr (DATA) with_pixels = load_four<V>(kept + 4 * width, width);
    }
    for (; c + lanes <= n; c += lanes) {
      const Four<V> columns = load_from<V, A>(tap.columns, c);
      if (of_kernel) add_products(with_columns, tap.template read<V>(c), columns);
      if (!of_x && !of_data) continue;
      const V grad = blended(columns, tap.coef);
      if constexpr (DATA) {
        if (of_data) add_products(with_pixels, grad, load_from<V, A>(tap.x, c));
        for (int j = 0; of_x && j < 4; ++j) store(grad_x[j] + c, V(load<V>(grad_x[j] + c) + tap.image_coef[j] * grad));
      } else {
        store(grad_x[0] + c, V(load<V>(grad_x[0] + c) + grad));
      }
    }
    if (of_kernel) store_four(kept, with_columns, width);
    if constexpr (DATA) store_four(kept + 4 * width, with_pixels, width);
  }
  if constexpr (lanes > 1) gather_tap<A, decltype(half_of<V, A>()), DATA, kAll>(tap, grad_x, kept, false, wanted, c, n);
}

// The sums of lanes of the dots with four corners, to [corner][position].
template <class A>
inline void sum_dots(const A* dots, A* to) {
  const auto sums = sum_lanes(load_four<typename VectorOf<A>::type>(dots));
  to[0] = sums.a, to[kLanes] = sums.b, to[2 * kLanes] = sums.c, to[3 * kLanes] = sums.d;
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
inline void gather_position(const UnfoldBlock<A>& b, const Taps<A, DATA>& taps, int64_t p, Wanted wanted, A* kept,
                            A* sums) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t width = DK_BYTES / sizeof(A);
  const int64_t count = b.g->taps();
  const auto is_outside = [&](int64_t tap) { return !DATA && taps.image.at[4 * tap * kLanes + p] < 0; };
  for_runs(b, p, [&](int64_t c, A* run, int64_t n) {
    const bool fresh = c == 0 && n >= width;
    if (c == 0 && n < width) __builtin_memset(kept, 0, 8 * count * width * sizeof(A));
    for (int64_t tap = 0; tap < count; ++tap) {
      if (is_outside(tap)) continue;
      const int64_t at = 4 * tap * kLanes + p;
      A* grad_x[DATA ? 4 : 1];
      for (int j = 0; j < (DATA ? 4 : 1); ++j) {
        const int64_t pixel = taps.image.at[at + j * kLanes];
        grad_x[j] = pixel < 0 || !b.grad_x ? b.unread : b.grad_x + pixel * b.grad_step + c;
      }
      gather_tap<A, V, DATA, kAll>(Tap<A, DATA>(b, taps, at, c, run), grad_x, kept + 8 * tap * width, fresh, wanted, 0,
                                   n);
    }
  });
  for (int64_t tap = 0; tap < count; ++tap) {
    if (is_outside(tap)) continue;
    if (kAll || wanted.kernel_offset) sum_dots(kept + 8 * tap * width, sums + 8 * tap * kLanes + p);
    if (DATA && (kAll || wanted.data_offset)) sum_dots(kept + (8 * tap + 4) * width, sums + (8 * tap + 4) * kLanes + p);
  }
}

template <class A, bool DATA>
void unfold_backward(const UnfoldBlock<A>& b) {
  const int64_t count = b.g->taps();
  const Taps<A, DATA> taps(b);
  A* sums = b.scratch + 32 * count * kLanes;
  A* kept = sums + 8 * count * kLanes;
  __builtin_memset(sums, 0, 8 * count * kLanes * sizeof(A));
  const Wanted wanted{b.grad_x != nullptr, b.grad_data_offset != nullptr, b.grad_kernel_offset != nullptr};
  const bool all = wanted.x && wanted.kernel_offset && (!DATA || wanted.data_offset);
  for (int64_t p = 0; p < b.positions; ++p)
    if (all)
      gather_position<A, DATA, true>(b, taps, p, wanted, kept, sums);
    else
      gather_position<A, DATA, false>(b, taps, p, wanted, kept, sums);
  if (b.grad_kernel_offset) finish_offset(taps.scope, sums, count, b.grad_kernel_offset);
  if (b.grad_data_offset) finish_offset(taps.image, sums + 4 * kLanes, count, b.grad_data_offset);
}
