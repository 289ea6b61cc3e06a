// What backward works on at once, two vectors, so that a tap's pointers and coefficients are read half as often.
// cpu_row_kernels.h includes it inside its namespace.

// By name: an array would live in memory.
template <class V>
struct Two {
  V a, b;
};

template <class V>
static inline Two<V> operator+(const Two<V>& l, const Two<V>& r) {
  return {l.a + r.a, l.b + r.b};
}
template <class V>
static inline Two<V> operator-(const Two<V>& l, const Two<V>& r) {
  return {l.a - r.a, l.b - r.b};
}
template <class V>
static inline Two<V> operator*(const Two<V>& l, const Two<V>& r) {
  return {l.a * r.a, l.b * r.b};
}
template <class A, class V>
static inline Two<V> operator*(A l, const Two<V>& r) {
  return {l * r.a, l * r.b};
}

template <class A>
using Pack = Two<typename VectorOf<A>::type>;

template <class A>
constexpr int64_t kChunk = sizeof(Pack<A>) / sizeof(A);

template <class A>
static inline Pack<A> load_pack(const A* p) {
  typedef typename VectorOf<A>::type V;
  return {load<V>(p), load<V>(p + sizeof(V) / sizeof(A))};
}

template <class A, class V>
static inline void store_pack(A* p, const Two<V>& v) {
  store(p, v.a), store(p + sizeof(V) / sizeof(A), v.b);
}

// Where vectors are short many are summed, and half as many additions to the sum round it less.
template <class V>
static inline V add_products(V sum, const Two<V>& l, const Two<V>& r) {
  if (DK_BYTES >= 64) return sum + l.a * r.a + l.b * r.b;
  return sum + (l.a * r.a + l.b * r.b);
}

// What a chunk has beyond the last channel is zero, and so is the gradient beside it. A row is seldom in the cache, and
// as short as a piece's channels are, the processor does not foresee it: so the row below, which is next, is asked for.
template <class A>
static void to_chunks(const Line<const A>& from, const ChunkLine<A>& to) {
  constexpr int64_t chunk = kChunk<A>, line = 64 / sizeof(A);
  const bool paired = to.step != chunk;
  for (int64_t i = 0; i < from.pixels; ++i) {
    const A* pixel = from.at + i * from.step;
    A* at = to.at + i * to.step;
    for (int64_t c = 0; c < from.channels; c += line) __builtin_prefetch(pixel + from.below + c, 0, 2);
    int64_t c = 0;
    for (; c + chunk <= from.channels; c += chunk, at += to.plane) {
      store_pack(at, load_pack(pixel + c));
      if (paired) store_pack(at + chunk, Pack<A>{});
    }
    for (int64_t j = 0; c < from.channels && j < chunk; ++j) {
      at[j] = c + j < from.channels ? pixel[c + j] : A(0);
      if (paired) at[chunk + j] = 0;
    }
  }
}

template <class A>
static void from_chunks(const ChunkLine<const A>& from, const Line<A>& to) {
  constexpr int64_t chunk = kChunk<A>, line = 64 / sizeof(A);
  for (int64_t i = 0; i < to.pixels; ++i) {
    const A* at = from.at + i * from.step;
    A* pixel = to.at + i * to.step;
    for (int64_t c = 0; c < to.channels; c += line) __builtin_prefetch(pixel + to.below + c, 1, 2);
    int64_t c = 0;
    for (; c + chunk <= to.channels; c += chunk, at += from.plane) store_pack(pixel + c, load_pack(at));
    for (int64_t j = 0; c + j < to.channels; ++j) pixel[c + j] = at[j];
  }
}
