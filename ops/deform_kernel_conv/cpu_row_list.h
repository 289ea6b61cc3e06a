// The taps of a few positions, listed by what they read of the table. cpu_row_kernels.h includes it inside its
// namespace.
//
// With kernel offsets, taps are sorted by the cell of the scope they lie in. All of one cell read the same four corners
// and add to the same four gradients, which so stay in registers: of the ten loads and five stores that a tap needs
// one by one, three and one remain. Without, a tap is sorted by its number. The order is that of taps, then positions.

// Where a tap lies between four corners, and how much of each it reads.
template <class A>
struct Blend {
  A fy, fx, coef[4];
};

struct Nothing {};

// One tap at one position.
template <class A, bool DATA, bool KERNEL>
struct Entry {
  typename Index<A>::type position, pixel[DATA ? 4 : 1];  // in the ring of rows; -1: outside the image
  std::conditional_t<KERNEL, Blend<A>, Nothing> kernel;
  std::conditional_t<DATA, Blend<A>, Nothing> data;
  typename Index<A>::type slot;  // tap * kPositions + position
};

// The list, and where the entries of each row of the table begin; at the end, how many there are.
template <class A, bool DATA, bool KERNEL>
struct List {
  Entry<A, DATA, KERNEL>* entries;
  A* dots;   // for each entry, sums of lanes: for the kernel's four corners where KERNEL, the data's where DATA
  A* terms;  // for each entry a pack: what the table's gradient has of it
  typename Index<A>::type* starts;

  List(A* scratch, int64_t taps, int64_t rows) {
    const int64_t most = taps * kPositions;
    dots = scratch, terms = dots + most * 8 * (64 / sizeof(A)), scratch = terms + most * 2 * (64 / sizeof(A));
    entries = reinterpret_cast<Entry<A, DATA, KERNEL>*>(scratch);
    starts = reinterpret_cast<typename Index<A>::type*>(scratch + most * 20);
    static_assert(sizeof(Entry<A, DATA, KERNEL>) <= 20 * sizeof(A), "list_scratch_size");
  }
};

template <class A>
static inline Blend<A> blend_of(const A* coef, const A* fy, const A* fx, int64_t tap, int64_t p) {
  const int64_t at = tap * kPositions + p;
  coef += 4 * tap * kPositions + p;
  return {fy[at], fx[at], {coef[0], coef[kPositions], coef[2 * kPositions], coef[3 * kPositions]}};
}

template <class A>
static inline int64_t cell_of(const Decoded<A>& d, int64_t slot) {
  return int64_t(uint64_t(d.kernel_index[slot]) / kBlock);
}

// Positions [first, end), from w0 on and at most `most`, at which a tap that does not move lies inside the image's
// width.
struct Range {
  int64_t first, end;
};

static inline Range positions_inside(const Geometry& g, int64_t tap, int64_t w0, int64_t most) {
  const int64_t left = w0 * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w;  // of position 0
  const int64_t width = g.out_width - w0 < most ? g.out_width - w0 : most;
  const int64_t first = left >= 0 ? 0 : (-left + g.stride_w - 1) / g.stride_w;
  const int64_t end = left >= g.width ? 0 : (g.width - 1 - left) / g.stride_w + 1;
  return {first < width ? first : width, end < width ? end : width};
}

// In which row of the ring a tap that does not move lies; -1: outside the image.
template <class A>
static inline int64_t ring_row(const BackwardRow<A>& row, int64_t tap) {
  const Geometry& g = *row.g;
  const int64_t y = row.h * g.stride_h - g.pad_h + (tap / g.kernel_w) * g.dilation_h;
  return y < 0 || y >= g.height ? -1 : y % row.ring;
}

// Which positions of a tap are listed: those where it lies in the image, or all if it can move there.
template <class A, bool DATA>
static inline Range listed(const BackwardRow<A>& row, int64_t tap, int64_t w0) {
  const Geometry& g = *row.g;
  if (DATA) return {0, g.out_width - w0 < kPositions ? g.out_width - w0 : kPositions};
  return ring_row(row, tap) < 0 ? Range{0, 0} : positions_inside(g, tap, w0, kPositions);
}

// Where a tap lies outside the image, its kernel offset moves nothing.
template <class A>
static inline void clear_unlisted(const BackwardRow<A>& row, int64_t tap, int64_t w0, Range listed) {
  A* to = row.grad_kernel_offset + 2 * tap * row.offset_step + w0;
  for (int64_t p = 0; p < kPositions; ++p)  // offset_step leaves room
    if (p < listed.first || p >= listed.end) to[p] = to[p + row.offset_step] = 0;
}

template <class A, bool DATA, bool KERNEL>
DK_NOINLINE static void make_list(const BackwardRow<A>& row, const Decoded<A>& d, int64_t w0, int64_t rows,
                                  const List<A, DATA, KERNEL>& list) {
  typedef typename Index<A>::type I;
  const Geometry& g = *row.g;
  const int64_t taps = g.taps();
  for (int64_t r = 0; r <= rows; ++r) list.starts[r] = 0;
  I* counts = list.starts + 1;  // of row r, until their running sum is taken
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Range range = listed<A, DATA>(row, tap, w0);
    if (KERNEL)
      for (int64_t p = range.first; p < range.end; ++p) ++counts[cell_of(d, tap * kPositions + p)];
    else
      counts[tap] = I(range.end > range.first ? range.end - range.first : 0);
  }
  I sum = 0;  // starts[r + 1] is where the next entry of row r goes, and at the end where row r + 1 begins
  for (int64_t r = 0; r < rows; ++r) {
    const I count = counts[r];
    counts[r] = sum, sum += count;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Range range = listed<A, DATA>(row, tap, w0);
    if (KERNEL && row.grad_kernel_offset) clear_unlisted(row, tap, w0, range);
    const int64_t left = w0 * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w;
    const int64_t pixel = DATA ? 0 : ring_row(row, tap) * g.width + left;
    for (int64_t p = range.first; p < range.end; ++p) {
      const int64_t at = tap * kPositions + p;
      Entry<A, DATA, KERNEL>& e = list.entries[counts[KERNEL ? cell_of(d, at) : tap]++];
      e.position = I(p), e.slot = I(at);
      if constexpr (DATA) {
        for (int j = 0; j < 4; ++j) e.pixel[j] = d.data_index[(4 * tap + j) * kPositions + p];
        e.data = blend_of(d.data_coef, d.data_fy, d.data_fx, tap, p);
      } else {
        e.pixel[0] = I(pixel + p * g.stride_w);
      }
      if constexpr (KERNEL) e.kernel = blend_of(d.kernel_coef, d.kernel_fy, d.kernel_fx, tap, p);
    }
  }
}
