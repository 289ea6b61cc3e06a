// The forward half of cpu_kernels.h, which includes it inside its namespace.

// Whether a cell of the scope, which every tap lies in, is all of it: a single tap's corners are all samples then.
inline bool is_one_cell(const Geometry& g) { return g.taps() == 1 && g.clip && g.scope_h == 2 && g.scope_w == 2; }

template <class V, class A>
inline void clear(A* to, int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, V{});
  for (; i < n; ++i) to[i] = 0;
}

// Adds what a tap reads to its four samples, of channels c to n; or writes it.
template <bool ADD, class A, class V, bool DATA>
inline void spread_tap(const Tap<A, DATA>& tap, int64_t c, int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  if (c + lanes <= n) {
    const Four<V> coef = spread_coefficients<V>(tap.coef);
    const Four<V> image_coef = DATA ? spread_coefficients<V>(tap.image_coef) : Four<V>{};
    const auto put = [&](A* to, const V& value) { store(to, ADD ? load<V>(to) + value : value); };
    for (; c + lanes <= n; c += lanes) {
      const V value = read_pixels<V>(tap, image_coef, c);
      put(tap.columns[0] + c, coef.a * value);  // one after the other: two may be one sample
      put(tap.columns[1] + c, coef.b * value);
      put(tap.columns[2] + c, coef.c * value);
      put(tap.columns[3] + c, coef.d * value);
    }
  }
  if constexpr (lanes > 1)
    if (c < n) spread_tap<ADD, A, decltype(half_of<V, A>())>(tap, c, n);
}

// One position, in one run of channels.
template <class A, bool DATA>
inline void spread_position(const UnfoldBlock<A>& b, const Taps<A, DATA>& taps, int64_t p, const Run& run, A* columns) {
  typedef typename VectorOf<A>::type V;
  const Geometry& g = *b.g;
  const int64_t samples = g.scope_h * g.scope_w;
  if (is_one_cell(g) && !taps.is_outside(p))
    return spread_tap<false, A, V>(Tap<A, DATA>(b, taps, p, run.channel, columns), 0, run.count);
  if (run.count == b.depth)
    clear<V>(columns, samples * b.depth);
  else
    for (int64_t s = 0; s < samples; ++s) clear<V>(columns + s * b.depth, run.count);
  for (int64_t at = p; at < 4 * g.taps() * kLanes; at += 4 * kLanes)
    if (!taps.is_outside(at)) spread_tap<true, A, V>(Tap<A, DATA>(b, taps, at, run.channel, columns), 0, run.count);
}

template <class A, bool DATA>
void unfold_forward(const UnfoldBlock<A>& b) {
  const Taps<A, DATA> taps(b);
  taps.template decode<false>(b);
  const int64_t size = b.g->scope_h * b.g->scope_w * b.depth;
  for (int64_t p = 0; p < b.positions; ++p)
    for (const Run* run = b.runs; run < b.runs + b.run_count; ++run)
      spread_position(b, taps, p, *run, b.columns + p * size + run->at);
}
