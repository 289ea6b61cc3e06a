// Where the taps of a few positions lie: offsets turned into places and coefficients. cpu_kernels.h includes it in its
// namespace.

// The four corners that each tap lies between: arrays are [tap][corner][position].
template <class A>
struct Corners {
  typedef typename Index<A>::type I;  // as wide as A, so that the decoding loops vectorise
  I* at;
  A *coef, *along_y, *along_x;  // and its derivatives; zero for a corner that is not there

  Corners(A* scratch, int64_t taps)
      : at(reinterpret_cast<I*>(scratch)), coef(scratch + 4 * taps * kLanes), along_y(coef + 4 * taps * kLanes),
        along_x(along_y + 4 * taps * kLanes) {}
};

// What of an axis two neighbouring samples have, and the derivatives.
template <class A>
struct Ends {
  typename Index<A>::type at[2];
  bool is_there[2];
  A coef[2], along[2];
};

template <class A>
inline Ends<A> ends_of(A coordinate, int64_t size, bool clip) {
  typedef typename Index<A>::type I;
  const Axis<A> axis = scope_axis<A>(coordinate, size, clip);
  const bool inside = clip | (axis.slope != 0);  // what lies outside is at -1, with 0 of sample 0
  const bool low = axis.lower >= 0, high = inside & (axis.lower + 1 < I(size));
  return {{axis.lower, axis.lower + 1},
          {low, high},
          {low ? 1 - axis.fraction : A(0), high ? axis.fraction : A(0)},
          {low ? -axis.slope : A(0), high ? axis.slope : A(0)}};
}

// Sets position p of one tap's corners; place(row, column, whether it is there) says what `at` is.
template <bool DERIVATIVES, class A, class Place>
inline void set_corners(const Corners<A>& to, int64_t tap, int64_t p, const Ends<A>& y, const Ends<A>& x,
                        const Place& place) {
  const int64_t first = 4 * tap * kLanes + p;
  for (int j = 0; j < 4; ++j) {
    const int64_t i = first + j * kLanes;
    to.at[i] = place(y.at[j / 2], x.at[j % 2], y.is_there[j / 2] & x.is_there[j % 2]);
    to.coef[i] = y.coef[j / 2] * x.coef[j % 2];
    if constexpr (DERIVATIVES)
      to.along_y[i] = y.along[j / 2] * x.coef[j % 2], to.along_x[i] = y.coef[j / 2] * x.along[j % 2];
  }
}

// Taps in the scope. Places are elements of a position's columns; of a corner outside, those of the first sample.
template <class A, bool DERIVATIVES, bool CLIP>
DK_NOINLINE void decode_in_scope(const UnfoldBlock<A>& b, const Corners<A>& to) {
  typedef typename Index<A>::type I;
  const Geometry& g = *b.g;
  const I width = I(g.scope_w), depth = I(b.depth);
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const A rest_y = A(tap / g.kernel_w) + A(g.scope_h - g.kernel_h) / 2;
    const A rest_x = A(tap % g.kernel_w) + A(g.scope_w - g.kernel_w) / 2;
    const A *dy = b.kernel_offset + 2 * tap * kLanes, *dx = dy + kLanes;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kLanes; ++p)
      set_corners<DERIVATIVES>(
          to, tap, p, ends_of<A>(rest_y + dy[p], g.scope_h, CLIP), ends_of<A>(rest_x + dx[p], g.scope_w, CLIP),
          [&](I row, I column, bool there) { return there ? (row * width + column) * depth : I(0); });
  }
}

// Row and column of the pixel that the first tap of each position rests on.
template <class A>
struct Rests {
  typename Index<A>::type y[kLanes], x[kLanes];

  explicit Rests(const UnfoldBlock<A>& b) {
    typedef typename Index<A>::type I;
    const Geometry& g = *b.g;
    int64_t h = b.position / g.out_width, w = b.position % g.out_width;
    for (int64_t p = 0; p < kLanes; ++p) {
      y[p] = I(h * g.stride_h - g.pad_h), x[p] = I(w * g.stride_w - g.pad_w);
      if (++w == g.out_width) w = 0, ++h;
    }
  }
};

// Taps in the image. Places are pixels; -1: outside. Where taps do not move only the first corner is set.
template <class A, bool DERIVATIVES, bool DATA>
DK_NOINLINE void decode_in_image(const UnfoldBlock<A>& b, const Corners<A>& to) {
  typedef typename Index<A>::type I;
  const Geometry& g = *b.g;
  const I height = I(g.height), width = I(g.width);
  const Rests<A> rests(b);
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const I i = I(tap / g.kernel_w * g.dilation_h), j = I(tap % g.kernel_w * g.dilation_w);
    const A *dy = DATA ? b.data_offset + 2 * tap * kLanes : nullptr, *dx = DATA ? dy + kLanes : nullptr;
    DK_INDEPENDENT
    for (int64_t p = 0; p < kLanes; ++p) {
      const I y = rests.y[p] + i, x = rests.x[p] + j;
      if constexpr (DATA)
        set_corners<DERIVATIVES>(to, tap, p, ends_of<A>(A(y) + dy[p], g.height, false),
                                 ends_of<A>(A(x) + dx[p], g.width, false),
                                 [&](I row, I column, bool there) { return there ? row * width + column : I(-1); });
      else
        to.at[4 * tap * kLanes + p] = (y >= 0) & (y < height) & (x >= 0) & (x < width) ? y * width + x : I(-1);
    }
  }
}

// Both, and where they are kept.
template <class A, bool DATA>
struct Taps {
  Corners<A> scope, image;

  explicit Taps(const UnfoldBlock<A>& b)
      : scope(b.scratch, b.g->taps()), image(b.scratch + 16 * b.g->taps() * kLanes, b.g->taps()) {}

  template <bool DERIVATIVES>
  void decode(const UnfoldBlock<A>& b) const {
    if (b.g->clip)
      decode_in_scope<A, DERIVATIVES, true>(b, scope);
    else
      decode_in_scope<A, DERIVATIVES, false>(b, scope);
    decode_in_image<A, DERIVATIVES, DATA>(b, image);
  }

  // Whether tap `at` (of [tap][corner][position], the first corner) reads nothing.
  bool is_outside(int64_t at) const { return !DATA && image.at[at] < 0; }
};

// One tap at one position, in one run of channels: its corners in the columns and in the image.
template <class A, bool DATA>
struct Tap {
  A* columns[4];
  const A* x[DATA ? 4 : 1];
  const A *coef, *image_coef;  // of corners, kLanes apart

  Tap(const UnfoldBlock<A>& b, const Taps<A, DATA>& taps, int64_t at, int64_t c, A* run)
      : coef(taps.scope.coef + at), image_coef(taps.image.coef + at) {
    for (int j = 0; j < 4; ++j) columns[j] = run + taps.scope.at[at + j * kLanes];
    for (int j = 0; j < (DATA ? 4 : 1); ++j) {
      const int64_t pixel = taps.image.at[at + j * kLanes];
      x[j] = DATA && pixel < 0 ? b.zeros : b.x + pixel * b.x_step + c;  // else it is not asked for where it is outside
    }
  }
};

template <class V, class A>
inline Four<V> load_from(const A* const* at, int64_t c) {
  return {load<V>(at[0] + c), load<V>(at[1] + c), load<V>(at[2] + c), load<V>(at[3] + c)};
}

// Coefficients of corners, each in all lanes: before a loop, whose stores the compiler would take to change them.
template <class V, class A>
inline Four<V> spread_coefficients(const A* from) {
  const V zero = {};  // subtracted, which is nothing: v - 0 is v
  return {from[0] - zero, from[kLanes] - zero, from[2 * kLanes] - zero, from[3 * kLanes] - zero};
}

template <class V>
inline V blended(const Four<V>& v, const Four<V>& coef) {
  return coef.a * v.a + coef.b * v.b + coef.c * v.c + coef.d * v.d;
}

// What a tap reads of the image.
template <class V, bool DATA, class A>
inline V read_pixels(const Tap<A, DATA>& tap, const Four<V>& image_coef, int64_t c) {
  if constexpr (DATA)
    return blended(load_from<V, A>(tap.x, c), image_coef);
  else
    return load<V>(tap.x[0] + c);
}
