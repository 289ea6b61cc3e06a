// What every pass prepares in shared memory for a tile of 16 positions: where each tap reads the data, and the
// coefficients with which it reads the scope, in the order in which the tensor core takes them.
#pragma once

#include "cuda_tile.h"

namespace dk {

// Kernel or data offsets (N, 2 taps, Hout, Wout) of any strides, in the input's type or, `wide`, in float; may be
// absent.
struct OffsetView {
  void* data = nullptr;
  bool wide = false;
  int n = 0, c = 0, h = 0, w = 0;

  DK_DEVICE int index(const Position& p, int channel) const { return p.n * n + channel * c + p.y * h + p.x * w; }

  template <class T>
  DK_DEVICE float at(int i) const {
    const char* value = static_cast<const char*>(data) + int64_t(i) * (wide ? int(sizeof(float)) : int(sizeof(T)));
    return wide ? *reinterpret_cast<const float*>(value) : static_cast<float>(*reinterpret_cast<const T*>(value));
  }

  template <class T>
  DK_DEVICE void set(int i, float value) const {
    if (wide)
      static_cast<float*>(data)[i] = value;
    else
      static_cast<T*>(data)[i] = static_cast<T>(value);
  }
};

// Where a tap of a result position reads: a pixel of the source, -1 if there is none, and the output position whose
// offset it follows.
struct Reading {
  int pixel;
  Position offset;
  bool there;
};

// Forward: results are output positions, sources input pixels. Otherwise (dL/dinput, without data offsets) results are
// input pixels and sources the outputs that a tap has read them for.
template <bool kForward>
DK_DEVICE Reading reading(const Sizes& s, const Position& p, int tap_y, int tap_x) {
  if constexpr (kForward) {
    const int y = p.y * s.stride_h - s.pad_h + tap_y * s.dilation_h,
              x = p.x * s.stride_w - s.pad_w + tap_x * s.dilation_w;
    const bool there = p.n < s.batch && y >= 0 && y < s.height && x >= 0 && x < s.width;
    return {there ? (p.n * s.height + y) * s.width + x : -1, p, there};
  } else {
    const int y = p.y + s.pad_h - tap_y * s.dilation_h, x = p.x + s.pad_w - tap_x * s.dilation_w;
    const Position out{p.n, s.stride_h == 1 ? y : y / s.stride_h, s.stride_w == 1 ? x : x / s.stride_w};
    const bool there = p.n < s.batch && y >= 0 && x >= 0 && out.y * s.stride_h == y && out.x * s.stride_w == x &&
        out.y < s.out_height && out.x < s.out_width;
    return {there ? (p.n * s.out_height + out.y) * s.out_width + out.x : -1, out, there};
  }
}

// The four pixels a data offset lies between; -1 for one outside the image.
struct __attribute__((aligned(16))) Corners {
  int pixel[4];
  float value[4];  // coefficient of each
};

// The bilinear coefficients' parts: corner j is at (y0 + j / 2, x0 + j % 2).
struct DataPoint {
  int y0, x0;
  float fy, fx;
  bool inside;
};

template <class T>
DK_DEVICE DataPoint data_point(const Sizes& s, const OffsetView& offset, const Position& p, int tap, int tap_y,
                               int tap_x) {
  const int i = offset.index(p, 2 * tap);
  const float y = float(p.y * s.stride_h - s.pad_h + tap_y * s.dilation_h) + offset.at<T>(i);
  const float x = float(p.x * s.stride_w - s.pad_w + tap_x * s.dilation_w) + offset.at<T>(i + offset.c);
  DataPoint d{0, 0, 0.0f, 0.0f, y >= -1 && y < float(s.height) && x >= -1 && x < float(s.width)};
  if (y != y || x != x) {  // a NaN must show: some pixel times NaN
    d.inside = true, d.fy = d.fx = y + x;
  } else if (d.inside) {
    d.y0 = int(floorf(y)), d.x0 = int(floorf(x));
    d.fy = y - float(d.y0), d.fx = x - float(d.x0);
  }
  return d;
}

DK_DEVICE int corner_pixel(const Sizes& s, const DataPoint& d, int n, int j) {
  const int y = d.y0 + j / 2, x = d.x0 + j % 2;
  const bool there = d.inside && y >= 0 && y < s.height && x >= 0 && x < s.width;
  return there ? (n * s.height + y) * s.width + x : -1;
}

// Where a tap of a position reads the scope.
struct ScopePoint {
  float y, x;
};

template <class T>
DK_DEVICE ScopePoint scope_point(const Sizes& s, const OffsetView& offset, const Position& p, int tap, int tap_y,
                                 int tap_x) {
  ScopePoint c{s.origin_y + float(tap_y), s.origin_x + float(tap_x)};
  if (offset.data) {
    const int i = offset.index(p, 2 * tap);
    c.y += offset.at<T>(i), c.x += offset.at<T>(i + offset.c);
  }
  return c;
}

DK_DEVICE float clipped(float c, float edge, bool clip) { return clip ? fminf(fmaxf(c, 0.0f), edge) : c; }

// The sample below each coordinate, for derivatives.
struct Knots {
  int16_t y, x;
};

// The same after the clip, with a NaN kept apart, because clip and hat would swallow it. A tap that reads nothing is
// far from every sample, and so is the knot of a coordinate that the clip has cut.
struct __attribute__((aligned(16))) HatPoint {
  float y, x, nan;
  Knots knots;
};

constexpr float kFar = 1e30f;
constexpr int16_t kFarKnot = INT16_MAX - 1;  // scopes have less samples than that

DK_DEVICE int16_t knot(float c, int size, bool clip) {
  const Axis<float> axis = scope_axis<float>(c, size, clip);
  return axis.slope ? int16_t(axis.lower) : kFarKnot;
}

template <bool kKnots>
DK_DEVICE HatPoint hat_point(const Sizes& s, const ScopePoint& c) {
  HatPoint point{clipped(c.y, s.edge_y, s.clip),
                 clipped(c.x, s.edge_x, s.clip),
                 c.y != c.y || c.x != c.x ? c.y + c.x : 0.0f,
                 {kFarKnot, kFarKnot}};
  if (kKnots) point.knots = {knot(c.y, s.scope_h, s.clip), knot(c.x, s.scope_w, s.clip)};
  return point;
}

DK_DEVICE float hat(float c, int sample) { return device::saturate(1.0f - fabsf(c - float(sample))); }

DK_DEVICE float hat_slope(int knot, int sample) { return sample == knot ? -1.0f : sample == knot + 1 ? 1.0f : 0.0f; }

// Shared memory of a tile, for some taps at a time: where they read the scope and the data, and their coefficients.
struct TileMemory {
  HatPoint* points;  // (taps, 16)
  float* hats;       // (taps, steps, parts, 32 lanes, 4)
  int* pixels;       // (taps, 8, 2), of rows g and g + 8 side by side; without data offsets
  Corners* corners;  // (taps, 16), with data offsets
  int steps;

  static DK_HOST_DEVICE size_t bytes(int taps, int steps, bool split, bool data) {
    const size_t hats = size_t(steps) * (split ? 2 : 1) * kWarp * kFragment * sizeof(float);
    return taps * (hats + kRows * (sizeof(HatPoint) + (data ? sizeof(Corners) : sizeof(int))));
  }

  DK_DEVICE TileMemory(int taps, int steps_, bool split) : steps(steps_) {
    points = reinterpret_cast<HatPoint*>(device::shared_memory());
    hats = reinterpret_cast<float*>(points + taps * kRows);
    pixels = reinterpret_cast<int*>(hats + taps * steps * (split ? 2 : 1) * kWarp * kFragment);
    corners = reinterpret_cast<Corners*>(pixels);
  }

  // The memory of the next tap on.
  template <bool kSplit>
  DK_DEVICE TileMemory next() const {
    TileMemory m = *this;
    m.points += kRows, m.pixels += kRows, m.corners += kRows;
    m.hats += steps * (kSplit ? 2 : 1) * kWarp * kFragment;
    return m;
  }

  // What follows it.
  template <bool kData>
  DK_DEVICE float* end(int taps) const {
    return kData ? reinterpret_cast<float*>(corners + taps * kRows) : reinterpret_cast<float*>(pixels + taps * kRows);
  }

  DK_DEVICE int& pixel(int slot, int r) const { return pixels[slot * kRows + (r & 7) * 2 + (r >> 3)]; }
};

struct Offsets {
  OffsetView data, kernel;
};

// Fills points, and pixels or corners, of taps first .. first + count - 1 at the 16 results from `result` on; slot i of
// the memory is tap first + i. What is beyond the last tap or the last result reads nothing. All threads of the block
// take part, in step after.
template <class T, bool kData, bool kForward, bool kKnots = false>
DK_DEVICE void prepare_points(const TileMemory& m, const Sizes& s, const Volume& results, const Offsets& offsets,
                              int result, int first, int count) {
  const int r = unsigned(device::thread()) % kRows;  // of a thread in all its turns: there are whole warps
  const bool inside = result + r < results.count;
  const Position p = inside ? results.at(result + r) : Position{s.batch, 0, 0};
#pragma unroll 1
  for (int slot = unsigned(device::thread()) / kRows; slot < count; slot += unsigned(device::threads()) / kRows) {
    const int tap = first + slot, i = slot * kRows + r;
    const int tap_y = s.by_kernel_w.quotient(tap), tap_x = tap - tap_y * s.kernel_w;
    const bool exists = inside && tap < s.taps();
    const Reading read = reading<kForward>(s, p, tap_y, tap_x);
    HatPoint point{kFar, kFar, 0, {kFarKnot, kFarKnot}};
    if (exists && (kForward || read.there))  // forward also where there is no pixel, so that a NaN shows
      point = hat_point<kKnots>(s, scope_point<T>(s, offsets.kernel, read.offset, tap, tap_y, tap_x));
    m.points[i] = point;
    if constexpr (kData) {
      const DataPoint d = exists ? data_point<T>(s, offsets.data, p, tap, tap_y, tap_x) : DataPoint{0, 0, 0, 0, false};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        m.corners[i].pixel[j] = corner_pixel(s, d, p.n, j);
        m.corners[i].value[j] = (j / 2 ? d.fy : 1 - d.fy) * (j % 2 ? d.fx : 1 - d.fx);
      }
    } else {
      m.pixel(slot, r) = exists ? read.pixel : -1;
    }
  }
}

// A lane's 4 words of fragment `index` in memory.
DK_DEVICE void store_packet(float* memory, int index, int lane, const Packet& packet) {
  reinterpret_cast<Packet*>(memory)[index * kWarp + lane] = packet;
}

DK_DEVICE Packet load_packet(const float* memory, int index, int lane) {
  return reinterpret_cast<const Packet*>(memory)[index * kWarp + lane];
}

DK_DEVICE void store_packet(float* memory, int index, int lane, const float (&values)[kFragment]) {
  Packet packet;
  Packed<float>::pack(values, packet);
  store_packet(memory, index, lane, packet);
}

DK_DEVICE void load_packet(const float* memory, int index, int lane, float (&values)[kFragment]) {
  const Packet packet = load_packet(memory, index, lane);
#pragma unroll
  for (int k = 0; k < kFragment; ++k) values[k] = device::from_bits(packet.word[k]);
}

// The same in as many parts as TF32 needs.
template <bool kSplit>
DK_DEVICE void store_parts(float* memory, int index, int lane, const float (&values)[kFragment]) {
  float high[kFragment], low[kFragment];
#pragma unroll
  for (int k = 0; k < kFragment; ++k) {
    const Split split(values[k]);
    high[k] = split.high, low[k] = split.low;
  }
  store_packet(memory, index * (kSplit ? 2 : 1), lane, high);
  if (kSplit) store_packet(memory, 2 * index + 1, lane, low);
}

template <bool kSplit>
DK_DEVICE void load_parts(const float* memory, int index, int lane, float (&parts)[2][kFragment]) {
  load_packet(memory, index * (kSplit ? 2 : 1), lane, parts[0]);
  if (kSplit) load_packet(memory, 2 * index + 1, lane, parts[1]);
}

// Coefficients of rows g and g + 8 with some half steps, as A of a product.
template <class T, int kHalfSteps>
DK_DEVICE void store_hats(float* memory, int index, int lane, const float (&values)[2][kHalfSteps]) {
  if constexpr (kHalfSteps == 2) {
    const float fragment[kFragment] = {values[0][0], values[1][0], values[0][1], values[1][1]};
    store_parts<Traits<T>::kSplitHats>(memory, index, lane, fragment);
  } else {
    Packet high, low;  // the value stored as T, and what that leaves
#pragma unroll
    for (int k = 0; k < kFragment; ++k) {
      const float (&row)[kHalfSteps] = values[k % 2];
      const T first(row[k / 2 * 2]), second(row[k / 2 * 2 + 1]);
      high.word[k] = pair_of(first, second);
      low.word[k] =
          pair_of(T(row[k / 2 * 2] - static_cast<float>(first)), T(row[k / 2 * 2 + 1] - static_cast<float>(second)));
    }
    store_packet(memory, 2 * index, lane, high);
    store_packet(memory, 2 * index + 1, lane, low);
  }
}

// The coefficients as A of the products: 16 positions x scope samples. A warp makes a tap at a time, or a tap's step
// where there are many.
template <class T, int kSteps>
DK_DEVICE void prepare_hats(const TileMemory& m, const Sizes& s, int count) {
  constexpr int kAtOnce = kSteps ? kSteps : 1, kHalfSteps = Traits<T>::kHalfSteps;
  const Lane id;
  const unsigned units = kSteps ? 1 : m.steps;  // of a tap
  for (unsigned i = id.warp; i < count * units; i += device::threads() / kWarp) {
    const int slot = i / units, first = i - slot * units;
    const HatPoint points[2] = {m.points[slot * kRows + id.g], m.points[slot * kRows + id.g + 8]};
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step) {
      float values[2][kHalfSteps];
#pragma unroll
      for (int k = 0; k < kHalfSteps; ++k) {
        const HalfStep half = half_step<kSteps != 0>(s, kHalfSteps * (first + step) + k);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const HatPoint& p = points[row];
          values[row][k] = hat(p.y, half.band * 4 + id.t) * hat(p.x, half.column) + p.nan;
        }
      }
      store_hats<T>(m.hats, i * kAtOnce + step, id.lane, values);
    }
  }
}

// What a tap reads for two rows of the tile: a pixel each, or an interpolated one.
template <class T>
struct Read {
  Channels<T> rows[2];

  DK_DEVICE float at(int i, int c) const { return rows[i][c]; }
};

struct Interpolated {
  float values[2][kLaneChannels];

  DK_DEVICE float at(int i, int c) const { return values[i][c]; }
};

template <int kSkip, class T, int kGroups>
DK_DEVICE void interpolate(const Corners& corners, const LaneView<const T, kGroups>& source,
                           float (&values)[kLaneChannels]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const Channels<T> pixel = source.template load<kSkip>(corners.pixel[j]);
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) values[c] = (j ? values[c] : 0.0f) + corners.value[j] * pixel[c];
  }
}

// Rows `row` and `row` + kApart for tap `slot`, in group kSkip of those that the view has.
template <bool kData, int kApart, int kSkip = 0, class T, int kGroups>
DK_DEVICE auto read_source(const TileMemory& m, const LaneView<const T, kGroups>& source, int slot, int row) {
  std::conditional_t<kData, Interpolated, Read<T>> read;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if constexpr (kData)
      interpolate<kSkip>(m.corners[slot * kRows + row + kApart * i], source, read.values[i]);
    else
      read.rows[i] = source.template load<kSkip>(m.pixel(slot, row + kApart * i));
  return read;
}

}  // namespace dk
