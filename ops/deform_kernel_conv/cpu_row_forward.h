// The forward half of row_kernels.h, which includes it inside its namespace.

// One coefficient a corner, each in all lanes of a vector.
template <class V>
struct Corners {
  V a, b, c, d;
};

// Four adjacent numbers, each spread over a vector. With AVX-512 by one load and four shuffles, as a processor that has
// it loads one broadcast a cycle, and loads are what limits.
template <class V, class A>
static inline Corners<V> spread(const A* from) {
#if DK_BYTES == 64
  if constexpr (sizeof(V) == 64 && sizeof(A) == 4) {
    const V v = reinterpret_cast<V>(_mm512_maskz_broadcast_f32x4(0xffff, _mm_load_ps(from)));
    return {__builtin_shufflevector(v, v, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12),
            __builtin_shufflevector(v, v, 1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 13),
            __builtin_shufflevector(v, v, 2, 2, 2, 2, 6, 6, 6, 6, 10, 10, 10, 10, 14, 14, 14, 14),
            __builtin_shufflevector(v, v, 3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15)};
  }
#elif DK_BYTES == 32
  if constexpr (sizeof(V) == 32 && sizeof(A) == 4) {
    const V v = reinterpret_cast<V>(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)));
    return {
        __builtin_shufflevector(v, v, 0, 0, 0, 0, 4, 4, 4, 4), __builtin_shufflevector(v, v, 1, 1, 1, 1, 5, 5, 5, 5),
        __builtin_shufflevector(v, v, 2, 2, 2, 2, 6, 6, 6, 6), __builtin_shufflevector(v, v, 3, 3, 3, 3, 7, 7, 7, 7)};
  }
#endif
  const V zero = {};  // subtracted, which is nothing: v - 0 is v
  return {from[0] - zero, from[1] - zero, from[2] - zero, from[3] - zero};
}

// sum += read * weight for U vectors V of one tap, whose coefficients are at `at`. A block's table is block_step after
// the one before.
template <bool KERNEL, class A, class V, int U, class Read>
static inline void add_tap(V (&sum)[U], const PackedTaps<A>& taps, int64_t at, const A* w, int64_t table_row,
                           int64_t block_step, const Read& read) {
  constexpr int lanes = sizeof(V) / sizeof(A), in_block = U * lanes > kBlock ? int(kBlock) / lanes : U;
  if constexpr (KERNEL) {
    w += taps.kernel_index[at];
    const auto coef = spread<V>(taps.kernel_coef + 4 * at);
    for (int block = 0; block < U; block += in_block, w += block_step)
      for (int u = 0; u < in_block; ++u) {
        const A *upper = w + u * lanes, *lower = upper + table_row;
        sum[block + u] += read(block + u) *
            (coef.a * load<V>(upper) + coef.b * load<V>(upper + kBlock) + coef.c * load<V>(lower) +
             coef.d * load<V>(lower + kBlock));
      }
  } else {
    for (int block = 0; block < U; block += in_block, w += block_step)
      for (int u = 0; u < in_block; ++u) sum[block + u] += read(block + u) * load<V>(w + u * lanes);
  }
}

// U vectors V of channels of one output position, from channel c on. `first`: elements from
// the image's first pixel to that of the first tap at rest, which may lie outside.
template <class A, bool DATA, bool KERNEL, class V, int U>
static inline void forward_vectors(const Row<A>& row, const Table& table, const PackedTaps<A>& taps, int64_t p,
                                   int64_t first, int64_t c, A* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  const int64_t table_row = table.width * kBlock, block_step = table.rows * kBlock;
  const A* w = row.table + c / kBlock * block_step + c % kBlock;
  V sum[U] = {};
  if constexpr (DATA) {
    const int64_t end = row.g->taps() * kPositions;
    for (int64_t tap = 0; tap < end; tap += kPositions) {
      const A* const* x = taps.pixels + 4 * (tap + p);
      const A *xa = x[0] + c, *xb = x[1] + c, *xc = x[2] + c, *xd = x[3] + c;
      const auto coef = spread<V>(taps.data_coef + 4 * (tap + p));
      const A* at_rest = KERNEL ? w : w + tap / kPositions * kBlock;
      add_tap<KERNEL>(sum, taps, tap + p, at_rest, table_row, block_step, [&](int u) {
        return coef.a * load<V>(xa + u * lanes) + coef.b * load<V>(xb + u * lanes) + coef.c * load<V>(xc + u * lanes) +
            coef.d * load<V>(xd + u * lanes);
      });
    }
  } else {
    const A* image = row.x + c;
    const RestingTap *tap = taps.first_tap[p], *end = tap + taps.number_of_taps[p];
    for (; tap < end; ++tap) {
      const A* x = image + (first + tap->from);
      const A* at_rest = KERNEL ? w : w + tap->tap / kPositions * kBlock;
      add_tap<KERNEL>(sum, taps, tap->tap + p, at_rest, table_row, block_step,
                      [&](int u) { return load<V>(x + u * lanes); });
    }
  }
  for (int u = 0; u < U; ++u) store(out + c + u * lanes, sum[u]);
}

// Channels c to end of one output position, in steps of U vectors V as far as they go.
template <class A, bool DATA, bool KERNEL, class V, int U>
static inline void forward_channels(const Row<A>& row, const Table& table, const PackedTaps<A>& taps, int64_t p,
                                    int64_t first, int64_t c, int64_t end, A* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A), step = U * lanes;
  for (; c + step <= end; c += step) forward_vectors<A, DATA, KERNEL, V, U>(row, table, taps, p, first, c, out);
  if constexpr (U > 1)
    forward_channels<A, DATA, KERNEL, V, U / 2>(row, table, taps, p, first, c, end, out);
  else if constexpr (lanes > 1)
    forward_channels<A, DATA, KERNEL, decltype(half_of<V, A>()), 1>(row, table, taps, p, first, c, end, out);
}

template <class A, bool DATA, bool KERNEL>
static void forward_row(const Row<A>& row) {
  typedef typename VectorOf<A>::type V;
  // As many sums and coefficients as fit the registers, of which AVX-512 has twice as many. Data offsets read four
  // streams of pixels, and more of each at once is slower.
  constexpr int vectors = DK_BYTES < 64 ? (DATA && KERNEL ? 4 : 8) : DATA ? 8 : 16;
  const Geometry& g = *row.g;
  const Table table(g, KERNEL);
  PackedTaps<A> taps(row.scratch, g.taps());
  for (int64_t w0 = 0; w0 < g.out_width; w0 += kPositions) {
    pack_taps<A, DATA, KERNEL>(row, w0, taps);
    const int64_t positions = g.out_width - w0 < kPositions ? g.out_width - w0 : kPositions;
    for (int64_t c = 0; c < row.channels; c += kSweep) {
      const int64_t end = row.channels - c < kSweep ? row.channels : c + kSweep;
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t first = (row.h * g.stride_h - g.pad_h) * g.width + (w0 + p) * g.stride_w - g.pad_w;
        forward_channels<A, DATA, KERNEL, V, vectors>(row, table, taps, p, first * row.x_step, c, end,
                                                      row.out + (w0 + p) * row.out_step);
      }
    }
  }
}
