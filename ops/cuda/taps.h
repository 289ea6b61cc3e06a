// What every pass prepares in shared memory for a tile of 16 positions: where each tap reads the data, and the
// coefficients with which it reads the scope, in the order in which the tensor core takes them.
#pragma once

#include "tile.h"

namespace dk {

// Kernel or data offsets (N, 2 taps, Hout, Wout) of any strides, in the input's type or, `wide`, in float; may be absent.
struct OffsetView {
  void* data = nullptr;
  bool wide = false;
  int64_t n = 0, c = 0, h = 0, w = 0;

  template <class T>
  DK_DEVICE float at(const Position& p, int channel) const {
    const int64_t i = p.n * n + channel * c + p.y * h + p.x * w;
    return wide ? static_cast<const float*>(data)[i] : static_cast<float>(static_cast<const T*>(data)[i]);
  }

  template <class T>
  DK_DEVICE void set(const Position& p, int channel, float value) const {
    const int64_t i = p.n * n + channel * c + p.y * h + p.x * w;
    if (wide)
      static_cast<float*>(data)[i] = value;
    else
      static_cast<T*>(data)[i] = static_cast<T>(value);
  }
};

// Where a tap of a result position reads: a pixel of the source, and the output position whose offset it follows.
// Both are -1 where the tap reads nothing.
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
    const int y = p.y * s.stride_h - s.pad_h + tap_y * s.dilation_h, x = p.x * s.stride_w - s.pad_w + tap_x * s.dilation_w;
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
struct Corners {
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
DK_DEVICE DataPoint data_point(const Sizes& s, const OffsetView& offset, const Position& p, int tap, int tap_y, int tap_x) {
  const float y = float(p.y * s.stride_h - s.pad_h + tap_y * s.dilation_h) + offset.at<T>(p, 2 * tap);
  const float x = float(p.x * s.stride_w - s.pad_w + tap_x * s.dilation_w) + offset.at<T>(p, 2 * tap + 1);
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

// One coordinate in the scope: after the clip, with a NaN kept apart because clip and hat would swallow it.
struct Coordinate {
  float value, nan;
};

DK_DEVICE Coordinate coordinate(float c, int size, bool clip) {
  const float nan = c != c ? c : 0.0f;
  if (clip) c = fminf(fmaxf(c, 0.0f), float(size - 1));
  return {c, nan};
}

DK_DEVICE float hat(const Coordinate& c, int sample) {
  return device::saturate(1.0f - fabsf(c.value - float(sample))) + c.nan;
}

// The hat's derivative at `sample`, with the convention of scope_axis at knots.
DK_DEVICE float hat_slope(const Axis<float>& axis, int sample) {
  return sample == axis.lower ? -axis.slope : sample == axis.lower + 1 ? axis.slope : 0.0f;
}

struct ScopePoint {
  float y, x;  // before the clip
};

template <class T>
DK_DEVICE ScopePoint scope_point(const Sizes& s, const OffsetView& offset, const Position& p, int tap, int tap_y, int tap_x) {
  ScopePoint c{float(tap_y) + 0.5f * float(s.scope_h - s.kernel_h), float(tap_x) + 0.5f * float(s.scope_w - s.kernel_w)};
  if (offset.data) c.y += offset.at<T>(p, 2 * tap), c.x += offset.at<T>(p, 2 * tap + 1);
  return c;
}

constexpr int kRowBytes = 256;  // of the 16 positions, rounded up to what vectors are aligned to

// Shared memory of a tile, for some taps at a time: results' positions, coefficients, and where the data is read.
struct TileMemory {
  Position* rows;     // (16)
  float* hats;        // (taps, steps, parts, 32 lanes, 4)
  int* pixels;        // (taps, 16), without data offsets
  Corners* corners;   // (taps, 16), with data offsets
  int parts, steps;

  static DK_HOST_DEVICE size_t bytes(int taps, int steps, bool split, bool data) {
    const size_t hats = size_t(taps) * steps * (split ? 2 : 1) * kWarp * kFragment * sizeof(float);
    return kRowBytes + hats + size_t(taps) * kRows * (data ? sizeof(Corners) : sizeof(int));
  }

  DK_DEVICE TileMemory(int taps, int steps_, bool split) : parts(split ? 2 : 1), steps(steps_) {
    char* memory = device::shared_memory();
    rows = reinterpret_cast<Position*>(memory);
    hats = reinterpret_cast<float*>(memory + kRowBytes);
    pixels = reinterpret_cast<int*>(hats + size_t(taps) * steps * parts * kWarp * kFragment);
    corners = reinterpret_cast<Corners*>(pixels);
  }

  DK_DEVICE float* fragment(int slot, int step, int part, int lane) const {
    return hats + (((slot * steps + step) * parts + part) * kWarp + lane) * kFragment;
  }
};

struct Offsets {
  OffsetView data, kernel;
};

// Positions first .. first + 15 of (batch, height, width); those beyond the end have n = batch, which no tap reads.
DK_DEVICE void place_rows(const TileMemory& m, int64_t first, int batch, int height, int width) {
  for (int r = device::thread(); r < kRows; r += device::threads()) {
    const int64_t index = first + r;
    m.rows[r] = index < int64_t(batch) * height * width ? position(int(index), height, width) : Position{batch, 0, 0};
  }
}

// Fills pixels or corners of taps first .. first + count - 1; slot i of the memory is tap first + i. All threads of the
// block take part, in step before (the rows must be there) and after.
template <class T, bool kData, bool kForward>
DK_DEVICE void prepare_sources(const TileMemory& m, const Sizes& s, const Offsets& offsets, int first, int count) {
  constexpr int kParts = kData ? 4 : 1;  // a thread for each corner
  for (int i = device::thread(); i < count * kRows * kParts; i += device::threads()) {
    const int at = i / kParts, tap = first + at / kRows;
    const int tap_y = s.by_kernel_w.quotient(tap), tap_x = tap - tap_y * s.kernel_w;
    const Position p = m.rows[at % kRows];
    if (kData) {
      const DataPoint d =
          p.n < s.batch ? data_point<T>(s, offsets.data, p, tap, tap_y, tap_x) : DataPoint{0, 0, 0, 0, false};
      const int j = i % kParts;
      m.corners[at].pixel[j] = corner_pixel(s, d, p.n, j);
      m.corners[at].value[j] = (j / 2 ? d.fy : 1 - d.fy) * (j % 2 ? d.fx : 1 - d.fx);
    } else {
      m.pixels[at] = reading<kForward>(s, p, tap_y, tap_x).pixel;
    }
  }
}

// A tap of a position: its coordinates in the scope, or none.
struct Sampling {
  Coordinate y, x;
  bool used;

  DK_DEVICE float at(const Sizes& s, int half, int t) const {
    const int band = s.by_scope_w.quotient(half);
    return used && half < s.half_steps() ? hat(y, band * 4 + t) * hat(x, half - band * s.scope_w) : 0.0f;
  }
};

template <class T, bool kData, bool kForward>
DK_DEVICE Sampling sampling(const Sizes& s, const Offsets& offsets, const Position& p, int tap) {
  const int tap_y = s.by_kernel_w.quotient(tap), tap_x = tap - tap_y * s.kernel_w;
  const Reading read = reading<kForward>(s, p, tap_y, tap_x);
  if (kData ? p.n >= s.batch : !read.there) return {{0, 0}, {0, 0}, false};
  const ScopePoint c = scope_point<T>(s, offsets.kernel, read.offset, tap, tap_y, tap_x);
  return {coordinate(c.y, s.scope_h, s.clip), coordinate(c.x, s.scope_w, s.clip), true};
}

DK_DEVICE void store_fragment(const TileMemory& m, int slot, int step, int lane, const float (&values)[kFragment]) {
  for (int part = 0; part < m.parts; ++part)
#pragma unroll
    for (int k = 0; k < kFragment; ++k) {
      const Split split(values[k]);
      m.fragment(slot, step, part, lane)[k] = part ? split.low : split.high;
    }
}

// The coefficients as A of the products: 16 positions x scope samples.
template <class T, bool kData, bool kForward>
DK_DEVICE void prepare_hats(const TileMemory& m, const Sizes& s, const Offsets& offsets, int first, int count) {
  const Lane id;
  for (int slot = id.warp; slot < count; slot += device::threads() / kWarp) {
    const Sampling points[2] = {sampling<T, kData, kForward>(s, offsets, m.rows[id.g], first + slot),
                                sampling<T, kData, kForward>(s, offsets, m.rows[id.g + 8], first + slot)};
    for (int step = 0; step < m.steps; ++step) {
      float values[kFragment];
#pragma unroll
      for (int k = 0; k < kFragment; ++k) values[k] = points[k % 2].at(s, 2 * step + k / 2, id.t);
      store_fragment(m, slot, step, id.lane, values);
    }
  }
}

// What tap `slot` reads for row r: a pixel, or the interpolated one.
template <bool kData, class T>
DK_DEVICE void read_source(const TileMemory& m, const Pixels<T>& source, int slot, int r, int channel,
                           float (&values)[kLaneChannels]) {
  if constexpr (kData) {
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) values[i] = 0;
    const Corners& corners = m.corners[slot * kRows + r];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (corners.pixel[j] < 0) continue;
      float pixel[kLaneChannels];
      source.load(corners.pixel[j], channel, pixel);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) values[i] += corners.value[j] * pixel[i];
    }
  } else {
    source.load(m.pixels[slot * kRows + r], channel, values);
  }
}

}  // namespace dk
