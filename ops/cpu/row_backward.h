// The backward half of row_kernels.h, which includes it inside its namespace.
//
// One pass over the taps gives all gradients. With g = dL/dout, x_k the value a tap read and W'_k the kernel's:
//   u = g x_k,   dL/dW_s += B_k[s] u,   dL/dx += g W'_k,   and the offsets' are <u, dW'_k> and <g W'_k, dx_k>.

// Which gradients are wanted. Usually all are, and then the compiler knows: kAll.
struct Wanted {
  bool x, weight, data_offset, kernel_offset;

  bool all() const { return x && weight && data_offset && kernel_offset; }
};

// What lies between four corners: between the upper two, and the lower two.
template <class P>
struct Patch {
  P upper, upper_step, lower, lower_step, twist;

  explicit Patch(P value) : upper(value), upper_step{}, lower{}, lower_step{}, twist{} {}  // of one corner
  Patch(P a, P b, P c, P d)
      : upper(a), upper_step(b - a), lower(c), lower_step(d - c), twist(lower_step - upper_step) {}
};

// A patch's value at a place, and its derivatives.
template <class P>
struct Sample {
  P value, dy, dx;
};

// Written in place, as copies would go through memory.
template <class P, class A>
static inline void take(Sample<P>& to, const Patch<P>& p, const Blend<A>& at) {
  const P above = p.upper + at.fx * p.upper_step;
  to.dy = p.lower + at.fx * p.lower_step - above;
  to.value = above + at.fy * to.dy;
  to.dx = p.upper_step + at.fy * p.twist;
}

template <class P>
static inline void take(Sample<P>& to, const Patch<P>& p, const Nothing&) {
  to.value = p.upper;
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

// The dot products of an offset's derivatives, lane by lane.
template <class A, class P>
static inline void add_dots(A* dots, bool first, const P& of, const Sample<P>& sample) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  V dy = {}, dx = {};
  if (!first) dy = load<V>(dots), dx = load<V>(dots + lanes);
  store(dots, add_products(dy, of, sample.dy));
  store(dots + lanes, add_products(dx, of, sample.dx));
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

  auto load() const {
    typedef Patch<Pack<A>> Image;
    if constexpr (DATA)
      return Image(load_pack(at[0]), load_pack(at[1]), load_pack(at[2]), load_pack(at[3]));
    else
      return Image(load_pack(at[0]));
  }
};

// A row of the table and, where taps move over it, the three with which it makes a cell.
template <class A, bool KERNEL>
struct Cell {
  A* corner[KERNEL ? 4 : 1];

  Cell(A* pair, int64_t table_width) {
    const int64_t step = 2 * kChunk<A>, steps[4] = {0, step, table_width * step, (table_width + 1) * step};
    for (int j = 0; j < (KERNEL ? 4 : 1); ++j) corner[j] = pair + steps[j];
  }

  auto load() const {
    typedef Patch<Pack<A>> Weight;
    if constexpr (KERNEL)
      return Weight(load_pack(corner[0]), load_pack(corner[1]), load_pack(corner[2]), load_pack(corner[3]));
    else
      return Weight(load_pack(corner[0]));
  }
};

// Four corners' weights and four gradients, of two vectors each, take 16 registers. Where there are no more, the
// gradients are summed afterwards, from terms that are kept in memory.
constexpr bool kSumLater = DK_BYTES < 64;

// The entries of one row of the table.
template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_group(const Chunk<A>& k, const Wanted& wanted, const Entry<A, DATA, KERNEL>* e,
                                  const Entry<A, DATA, KERNEL>* end, const Cell<A, KERNEL>& cell, A* dots) {
  typedef Pack<A> P;
  constexpr int64_t lanes = DK_BYTES / sizeof(A), size = 2 * (DATA + KERNEL) * lanes;
  const bool of_x = kAll || wanted.x, of_weight = kAll || wanted.weight;
  const bool of_data = DATA && (kAll || wanted.data_offset), of_kernel = KERNEL && (kAll || wanted.kernel_offset);
  const Entry<A, DATA, KERNEL>* const begin = e;
  const Patch<P> kernel = cell.load();
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
    Sample<P> weight, read;
    take(weight, kernel, e->kernel);
    take(read, pixels.load(), e->data);
    if (of_weight || of_kernel) {
      const P u = g * read.value;
      if (of_kernel) add_dots(dots, k.first, u, weight);
      if (of_weight && KERNEL && kSumLater)
        store_pack(term, u);
      else if (of_weight)
        add_term(*e, u);
    }
    if (of_x || of_data) {
      const P v = g * weight.value;
      if (of_data) add_dots(dots + KERNEL * 2 * lanes, k.first, v, read);
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

// From sums over channels to the gradient of (dy, dx) of one tap at one position.
template <class A>
static inline void store_offset(A* to, int64_t step, int64_t w0, int64_t slot, A dy, A dx) {
  to += 2 * (slot / kPositions) * step + w0 + slot % kPositions;
  to[0] = dy, to[step] = dx;
}

template <class A, bool DATA, bool KERNEL>
DK_NOINLINE static void finish_offsets(const BackwardRow<A>& row, const Decoded<A>& d, int64_t w0,
                                       const List<A, DATA, KERNEL>& list, int64_t entries) {
  typedef typename VectorOf<A>::type V;
  constexpr int64_t lanes = sizeof(V) / sizeof(A), both = DATA && KERNEL, size = 2 * (DATA + KERNEL) * lanes;
  const auto store_kernel = [&](int64_t slot, A dy, A dx) {
    if (row.grad_kernel_offset)
      store_offset(row.grad_kernel_offset, row.offset_step, w0, slot, d.slope_y[slot] * dy, d.slope_x[slot] * dx);
  };
  const auto store_data = [&](int64_t slot, A dy, A dx) {
    if (row.grad_data_offset) store_offset(row.grad_data_offset, row.offset_step, w0, slot, dy, dx);
  };
  for (int64_t i = 0; i < entries; i += both ? 1 : 2) {
    const A* dots = list.dots + i * size;
    const int64_t slot = list.entries[i].slot, next = list.entries[!both && i + 1 < entries ? i + 1 : i].slot;
    const A* second = next == slot ? dots : dots + size;
    if (both) second = dots + 2 * lanes;
    const auto sum = sum_lanes(
        Four<V>{load<V>(dots), load<V>(dots + lanes), load<V>(second), load<V>(second + lanes)});
    if (KERNEL) store_kernel(slot, sum.a, sum.b);
    if (KERNEL && !both) store_kernel(next, sum.c, sum.d);
    if (DATA && !both) store_data(slot, sum.a, sum.b);
    if (DATA) store_data(next, sum.c, sum.d);
  }
}

template <class A, bool DATA, bool KERNEL, bool kAll>
static inline void backward_moved(const BackwardRow<A>& row, const Wanted& wanted) {
  const Geometry& g = *row.g;
  const Table table(g, KERNEL);
  const Decoded<A> d(row.scratch, g.taps());
  const List<A, DATA, KERNEL> list(row.list_scratch, g.taps(), table.rows);
  constexpr int64_t chunk = kChunk<A>, size = 2 * (DATA + KERNEL) * (DK_BYTES / sizeof(A));
  alignas(64) A outside[2 * chunk] = {};
  for (int64_t w0 = 0; w0 < g.out_width; w0 += kPositions) {
    decode<A, DATA, KERNEL>(row, w0, d);
    make_list(row, d, w0, table.rows, list);
    for (int64_t c = 0; c < row.chunks; ++c) {
      const Chunk<A> k{row.image + c * row.plane, row.grad + c * row.grad_plane + w0 * chunk, c == 0,
                       g.width * 2 * chunk, list.terms, outside};
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
