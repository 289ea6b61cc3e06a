// The forward half of cpu_kernels.h, which includes it inside its namespace.

// Whether a cell of the scope, which every tap lies in, is all of it: a single tap's corners are all samples then.
inline bool is_one_cell(const Geometry& g) { return g.taps() == 1 && g.clip && g.scope_h == 2 && g.scope_w == 2; }

// Adds what a tap reads to its four samples, of channels c to n; or writes it.
template <bool ADD, class A, class V, bool DATA>
inline void spread_tap(const Tap<A, DATA>& tap, int64_t c, int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  for (; c + lanes <= n; c += lanes) {
    const V value = tap.template read<V>(c);
    for (int j = 0; j < 4; ++j) {  // one after the other: two may be one sample
      A* to = tap.columns[j] + c;
      if constexpr (ADD)
        store(to, V(load<V>(to) + tap.coef[j] * value));
      else
        store(to, V(tap.coef[j] * value));
    }
  }
  if constexpr (lanes > 1) spread_tap<ADD, A, decltype(half_of<V, A>())>(tap, c, n);
}

template <class A, bool DATA>
void unfold_forward(const UnfoldBlock<A>& b) {
  typedef typename VectorOf<A>::type V;
  const Geometry& g = *b.g;
  const Taps<A, DATA> taps(b);
  const int64_t samples = g.scope_h * g.scope_w;
  const bool one_cell = is_one_cell(g);
  for (int64_t p = 0; p < b.positions; ++p)
    for_runs(b, p, [&](int64_t c, A* run, int64_t n) {
      if (one_cell) return spread_tap<false, A, V>(Tap<A, DATA>(b, taps, p, c, run), 0, n);
      for (int64_t s = 0; s < samples; ++s) __builtin_memset(run + s * b.depth, 0, n * sizeof(A));
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        if (!DATA && taps.image.at[4 * tap * kLanes + p] < 0) continue;
        spread_tap<true, A, V>(Tap<A, DATA>(b, taps, 4 * tap * kLanes + p, c, run), 0, n);
      }
    });
}
