// The backward half of row_kernels.h, which includes it inside its namespace.
//
// One pass over the taps gives all gradients. With g = dL/dout, x_k the value a tap read and W'_k the kernel's:
//   u = g x_k,   dL/dW_s += B_k[s] u,   dL/dx += g W'_k,   and the offsets' come from dots with the
//   corners that a tap lies between: of u with W's, of g W'_k with x's.

// Which gradients are wanted. Usually all are, and then the compiler knows: kAll.
struct Wanted {
  bool x, weight, data_offset, kernel_offset;

  bool all() const { return x && weight && data_offset && kernel_offset; }
};

// What a tap reads between four corners; without offsets there is one.
template <class P, class A>
static inline P blended(const Four<P>& v, const Blend<A>& at) {
  return at.coef[0] * v.a + at.coef[1] * v.b + at.coef[2] * v.c + at.coef[3] * v.d;
}

template <class P>
static inline P blended(const Four<P>& v, const Nothing&) {
  return v.a;
}

template <bool FOUR, class A>
static inline Four<Pack<A>> load_corners(A* const* at) {
  typedef Pack<A> P;
  if constexpr (FOUR)
    return {load_pack<A>(at[0]), load_pack<A>(at[1]), load_pack<A>(at[2]), load_pack<A>(at[3])};
  else
    return {load_pack<A>(at[0]), P{}, P{}, P{}};
}

// What the entries of a chunk share.
template <class A>
struct Chunk {
  A* image;  // pixels of x and its gradient
  const A* grad;
  bool first;     // of the row's chunks: dots are begun, not added to
  int64_t width;  // of the image, in elements
  A* terms;       // see List
  A* outside;     // a pixel that stands for those outside the image: zeros, and a gradient that nobody reads
};

template <class A, class P>
static inline void add_to_memory(A* to, const P& v) {
  store_pack(to, load_pack(to) + v);
}

// The dot products with four corners, lane by lane: their differences are the offset's derivatives. Differences taken
// before would be rounded for each channel.
template <class A, class P>
static inline void add_dots(A* dots, bool first, const P& of, const Four<P>& corners) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  Four<V> sum = {};
  if (!first) sum = load_four<V>(dots);
  store(dots, add_products(sum.a, of, corners.a));
  store(dots + lanes, add_products(sum.b, of, corners.b));
  store(dots + 2 * lanes, add_products(sum.c, of, corners.c));
  store(dots + 3 * lanes, add_products(sum.d, of, corners.d));
}

// Where a tap reads the image, and adds to its gradient: one pixel, or the four around it where it moves.
template <class A, bool DATA>
struct Pixels {
  A* at[DATA ? 4 : 1];

  Pixels(const Chunk<A>& k, const typename Index<A>::type* pixel) {
    constexpr int64_t step = 2 * kChunk<A>;
    at[0] = k.image + int64_t(pixel[0]) * step;
    if constexpr (DATA) {
      if ((pixel[0] | pixel[3]) >= 0)  // all inside
        at[1] = at[0] + step, at[2] = at[0] + k.width, at[3] = at[2] + step;
      else
        for (int j = 0; j < 4; ++j) at[j] = pixel[j] < 0 ? k.outside : k.image + int64_t(pixel[j]) * step;
    }
  }

  Four<Pack<A>> load() const { return load_corners<DATA, A>(at); }
};

// A row of the table and, where taps move over it, the three with which it makes a cell.
template <class A, bool KERNEL>
struct Cell {
  A* corner[KERNEL ? 4 : 1];

  Cell(A* pair, int64_t table_width) {
    const int64_t step = 2 * kChunk<A>, steps[4] = {0, step, table_width * step, (table_width + 1) * step};
    for (int j = 0; j < (KERNEL ? 4 : 1); ++j) corner[j] = pair + steps[j];
  }

  Four<Pack<A>> load() const { return load_corners<KERNEL, A>(corner); }
};

// Four corners' weights and four gradients, of two vectors each, take 16 registers. Where there are no more, the
// gradients are summed afterwards, from terms that are kept in memory.
constexpr bool kSumLater = DK_BYTES < 64;

// The entries of one row of the table.
template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_group(const Chunk<A>& k, const Wanted& wanted, const Entry<A, DATA, KERNEL>* e,
                                  const Entry<A, DATA, KERNEL>* end, const Cell<A, KERNEL>& cell, A* dots) {
  typedef Pack<A> P;
  constexpr int64_t lanes = DK_BYTES / sizeof(A), size = 4 * (DATA + KERNEL) * lanes;
  const bool of_x = kAll || wanted.x, of_weight = kAll || wanted.weight;
  const bool of_data = DATA && (kAll || wanted.data_offset), of_kernel = KERNEL && (kAll || wanted.kernel_offset);
  const Entry<A, DATA, KERNEL>* const begin = e;
  const Four<P> weights = cell.load();
  P sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  const auto add_term = [&](const Entry<A, DATA, KERNEL>& at, const P& u) {
    if constexpr (KERNEL) {
      const A* coef = at.kernel.coef;
      sum0 = sum0 + coef[0] * u, sum1 = sum1 + coef[1] * u, sum2 = sum2 + coef[2] * u, sum3 = sum3 + coef[3] * u;
    } else {
      sum0 = sum0 + u;
    }
  };
  A* term = k.terms;
  for (; e < end; ++e, dots += size, term += kChunk<A>) {
    const P g = load_pack(k.grad + e->position * kChunk<A>);
    const Pixels<A, DATA> pixels(k, e->pixel);
    const Four<P> read = pixels.load();
    if (of_weight || of_kernel) {
      const P u = g * blended(read, e->data);
      if (of_kernel) add_dots(dots, k.first, u, weights);
      if (of_weight && KERNEL && kSumLater)
        store_pack(term, u);
      else if (of_weight)
        add_term(*e, u);
    }
    if (of_x || of_data) {
      const P v = g * blended(weights, e->kernel);
      if (of_data) add_dots(dots + KERNEL * 4 * lanes, k.first, v, read);
      if constexpr (DATA) {
        for (int j = 0; of_x && j < 4; ++j) add_to_memory(pixels.at[j] + kChunk<A>, e->data.coef[j] * v);
      } else {
        add_to_memory(pixels.at[0] + kChunk<A>, v);
      }
    }
  }
  if (!of_weight) return;
  if (KERNEL && kSumLater)
    for (e = begin, term = k.terms; e < end; ++e, term += kChunk<A>) add_term(*e, load_pack(term));
  add_to_memory(cell.corner[0] + kChunk<A>, sum0);
  if constexpr (KERNEL) {
    add_to_memory(cell.corner[1] + kChunk<A>, sum1);
    add_to_memory(cell.corner[2] + kChunk<A>, sum2);
    add_to_memory(cell.corner[3] + kChunk<A>, sum3);
  }
}

// From dots with four corners to those with the derivatives of what lies between, dy and dx, still lane by lane.
template <class A>
static inline Pack<A> derivatives(const A* dots, const Blend<A>& at) {
  const auto dot = load_four<typename VectorOf<A>::type>(dots);
  return {(1 - at.fx) * (dot.c - dot.a) + at.fx * (dot.d - dot.b),
          (1 - at.fy) * (dot.b - dot.a) + at.fy * (dot.d - dot.c)};
}

// From sums over channels to the gradient of (dy, dx) of one tap at one position.
template <class A>
static inline void store_offset(A* to, int64_t step, int64_t w0, int64_t slot, A dy, A dx) {
  to += 2 * (slot / kPositions) * step + w0 + slot % kPositions;
  to[0] = dy, to[step] = dx;
}

// Two offsets' lanes are summed together: of one entry if it has two, else of two entries.
template <class A, bool DATA, bool KERNEL>
DK_NOINLINE static void finish_offsets(const BackwardRow<A>& row, const Decoded<A>& d, int64_t w0,
                                       const List<A, DATA, KERNEL>& list, int64_t entries) {
  constexpr int64_t four = 4 * (DK_BYTES / sizeof(A)), both = DATA && KERNEL, size = (DATA + KERNEL) * four;
  const auto store_kernel = [&](int64_t slot, A dy, A dx) {
    if (row.grad_kernel_offset)
      store_offset(row.grad_kernel_offset, row.offset_step, w0, slot, d.slope_y[slot] * dy, d.slope_x[slot] * dx);
  };
  const auto store_data = [&](int64_t slot, A dy, A dx) {
    if (row.grad_data_offset) store_offset(row.grad_data_offset, row.offset_step, w0, slot, dy, dx);
  };
  for (int64_t i = 0; i < entries; i += both ? 1 : 2) {
    const int64_t j = both || i + 1 == entries ? i : i + 1;
    const Entry<A, DATA, KERNEL>&e = list.entries[i], &next = list.entries[j];
    Pack<A> first, second;
    if constexpr (KERNEL)
      first = derivatives(list.dots + i * size, e.kernel);
    else
      first = derivatives(list.dots + i * size, e.data);
    if constexpr (DATA)
      second = derivatives(list.dots + j * size + KERNEL * four, next.data);
    else
      second = derivatives(list.dots + j * size, next.kernel);
    const auto sum = sum_lanes(Four<typename VectorOf<A>::type>{first.a, first.b, second.a, second.b});
    if (KERNEL) store_kernel(e.slot, sum.a, sum.b);
    if (KERNEL && !both) store_kernel(next.slot, sum.c, sum.d);
    if (DATA && !both) store_data(e.slot, sum.a, sum.b);
    if (DATA) store_data(next.slot, sum.c, sum.d);
  }
}

template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_moved(const BackwardRow<A>& row, const Wanted& wanted) {
  const Geometry& g = *row.g;
  const Table table(g, KERNEL);
  const Decoded<A> d(row.scratch, g.taps());
  const List<A, DATA, KERNEL> list(row.list_scratch, g.taps(), table.rows);
  constexpr int64_t chunk = kChunk<A>, size = 4 * (DATA + KERNEL) * (DK_BYTES / sizeof(A));
  alignas(64) A outside[2 * chunk] = {};
  for (int64_t w0 = 0; w0 < g.out_width; w0 += kPositions) {
    decode<A, DATA, KERNEL>(row, w0, d);
    make_list(row, d, w0, table.rows, list);
    for (int64_t c = 0; c < row.chunks; ++c) {
      const Chunk<A> k{row.image + c * row.plane,
                       row.grad + c * row.grad_plane + w0 * chunk,
                       c == 0,
                       g.width * 2 * chunk,
                       list.terms,
                       outside};
      A* pair = row.pair_table + c * table.rows * 2 * chunk;
      for (int64_t r = 0; r < table.rows; ++r)
        if (list.starts[r] < list.starts[r + 1])
          backward_group<A, DATA, KERNEL, kAll>(
              k, wanted, list.entries + list.starts[r], list.entries + list.starts[r + 1],
              Cell<A, KERNEL>(pair + r * 2 * chunk, table.width), list.dots + list.starts[r] * size);
    }
    if (row.grad_kernel_offset || row.grad_data_offset) finish_offsets(row, d, w0, list, list.starts[table.rows]);
  }
}
