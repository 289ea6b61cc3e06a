// Gradients of kernel and data offsets of a tile of 16 positions. The warps of a block share out the channels and add up
// in the end, so there are no atomics.
//
// Kernel offsets: G = (gradient times pixel) (positions x channels) times weight (channels x scope samples), against the
// hats' derivatives. Data offsets: per corner, the sum over channels of gradient times sampled kernel times pixel.
#pragma once

#include "correlate.h"

namespace dk {

constexpr int kTapsAtOnce = 3;    // a row of a 3 x 3 kernel: they share the gradient's and the weight's loads
constexpr int kSampleBlocks = 2;  // products of 8 scope samples at a time: 4 x 4 in one go, larger scopes in several

template <class T>
struct OffsetGradientArguments {
  Sizes sizes;
  Offsets offsets, grad_offsets;
  Pixels<const T> input, grad;
  Weight<T> weight;
};

// A row's derivatives by (dy, dx) of kTapsAtOnce taps, for rows g and g + 8.
typedef float Slopes[kTapsAtOnce][2][2];

// Adds up over the 4 lanes of a row and then over the warps in their order; writes the offsets' gradient.
template <class T>
DK_DEVICE void write_slopes(const TileMemory& m, const Sizes& s, const OffsetView& to, float* sums, int first, Slopes& slopes) {
  const Lane id;
  const int warps = device::threads() / kWarp, values = kTapsAtOnce * kRows * 2;
  for (int tap = 0; tap < kTapsAtOnce; ++tap)
    for (int i = 0; i < 2; ++i)
      for (int axis = 0; axis < 2; ++axis) {
        float sum = slopes[tap][i][axis];
        sum += device::shuffle_xor(sum, 1);
        sum += device::shuffle_xor(sum, 2);
        if (id.t == 0) sums[id.warp * values + (tap * 2 + axis) * kRows + id.g + 8 * i] = sum;
      }
  device::sync_block();
  for (int i = device::thread(); i < values; i += device::threads()) {
    const int tap = first + i / kRows / 2, axis = i / kRows % 2;
    const Position p = m.rows[i % kRows];
    if (tap >= s.taps() || p.n >= s.batch) continue;
    float sum = sums[i];
    for (int warp = 1; warp < warps; ++warp) sum += sums[warp * values + i];
    to.set<T>(p, 2 * tap + axis, sum);
  }
}

DK_HOST_DEVICE inline size_t slope_bytes(int warps) { return size_t(warps) * kTapsAtOnce * kRows * 2 * sizeof(float); }

// G of kTapsAtOnce taps from tap `first` on, and kSampleBlocks products of scope samples from product `block` on.
template <class T, bool kData>
DK_DEVICE void sample_gradients(const OffsetGradientArguments<T>& a, const TileMemory& m, int64_t tile, int count, int block,
                                float (&sums)[kTapsAtOnce][kSampleBlocks][4]) {
  const Lane id;
  const Sizes& s = a.sizes;
  constexpr bool kSplitHere = Traits<T>::kSplitProducts;
  for (int group = id.warp * kGroup; group < s.channels; group += device::threads() / kWarp * kGroup) {
    const int channel = group + id.t * kLaneChannels;
    float grad[2][kLaneChannels];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = id.g + 8 * i;
      a.grad.load(m.rows[r].n < s.batch ? int(tile * kRows) + r : -1, channel, grad[i]);
    }
    // As B: channels 8t + 2j and 8t + 2j + 1 by scope sample g of 8, that is half step 2 * product + g / 4, row g % 4.
    float weight[kSampleBlocks][kProducts][2][2];
#pragma unroll
    for (int b = 0; b < kSampleBlocks; ++b)
#pragma unroll
      for (int j = 0; j < kProducts; ++j)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const Split split(a.weight.at(s, channel + 2 * j + k, 2 * (block + b) + id.g / 4, id.g % 4));
          weight[b][j][0][k] = split.high, weight[b][j][1][k] = split.low;
        }
#pragma unroll
    for (int slot = 0; slot < kTapsAtOnce; ++slot) {
      if (slot >= count) continue;
      float pixels[2][kLaneChannels];
#pragma unroll
      for (int i = 0; i < 2; ++i) read_source<kData>(m, a.input, slot, id.g + 8 * i, channel, pixels[i]);
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        float u[2][kFragment];
#pragma unroll
        for (int k = 0; k < kFragment; ++k) {
          const Split split(grad[k % 2][2 * j + k / 2] * pixels[k % 2][2 * j + k / 2]);
          u[0][k] = split.high, u[1][k] = split.low;
        }
#pragma unroll
        for (int b = 0; b < kSampleBlocks; ++b)
          multiply<kSplitHere, Traits<T>::kSplitWeight>(sums[slot][b], u, weight[b][j]);
      }
    }
  }
}

// Grid: (tiles of 16 positions).
template <class T, bool kData>
DK_KERNEL void kernel_offset_gradient(const OffsetGradientArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const TileMemory m(kTapsAtOnce, 0, false);
  float* sums = reinterpret_cast<float*>(m.corners + kTapsAtOnce * kRows);
  place_rows(m, device::block_x() * kRows, s.batch, s.out_height, s.out_width);
  for (int tap = 0; tap < s.taps(); tap += kTapsAtOnce) {
    const int count = s.taps() - tap < kTapsAtOnce ? s.taps() - tap : kTapsAtOnce;
    device::sync_block();
    prepare_sources<T, kData, true>(m, s, a.offsets, tap, count);
    device::sync_block();
    Slopes slopes = {};
    for (int block = 0; block < s.steps(); block += kSampleBlocks) {
      float gradients[kTapsAtOnce][kSampleBlocks][4] = {};
      sample_gradients<T, kData>(a, m, device::block_x(), count, block, gradients);
#pragma unroll
      for (int slot = 0; slot < kTapsAtOnce; ++slot)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Position p = m.rows[id.g + 8 * i];
          if (slot >= count || p.n >= s.batch) continue;
          const int at = tap + slot;
          const int tap_y = s.by_kernel_w.quotient(at), tap_x = at - tap_y * s.kernel_w;
          const ScopePoint c = scope_point<T>(s, a.offsets.kernel, p, at, tap_y, tap_x);
          const Axis<float> y = scope_axis<float>(c.y, s.scope_h, s.clip), x = scope_axis<float>(c.x, s.scope_w, s.clip);
          const Coordinate hat_y = coordinate(c.y, s.scope_h, s.clip), hat_x = coordinate(c.x, s.scope_w, s.clip);
#pragma unroll
          for (int b = 0; b < kSampleBlocks; ++b)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const int sample = 2 * id.t + k, half = 2 * (block + b) + sample / 4;
              if (half >= s.half_steps()) continue;
              const int band = s.by_scope_w.quotient(half), row = band * 4 + sample % 4, column = half - band * s.scope_w;
              const float g = gradients[slot][b][2 * i + k];
              slopes[slot][i][0] += g * hat_slope(y, row) * hat(hat_x, column);
              slopes[slot][i][1] += g * hat_slope(x, column) * hat(hat_y, row);
            }
        }
    }
    write_slopes<T>(m, s, a.grad_offsets.kernel, sums, tap, slopes);
  }
}

// Grid: (tiles of 16 positions).
template <class T, int kSteps>
DK_KERNEL void data_offset_gradient(const OffsetGradientArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const TileMemory m(kTapsAtOnce, s.steps(), Traits<T>::kSplitHats);
  float* sums = reinterpret_cast<float*>(m.corners + kTapsAtOnce * kRows);
  const int64_t first = device::block_x() * kRows;
  place_rows(m, first, s.batch, s.out_height, s.out_width);
  for (int tap = 0; tap < s.taps(); tap += kTapsAtOnce) {
    const int count = s.taps() - tap < kTapsAtOnce ? s.taps() - tap : kTapsAtOnce;
    device::sync_block();
    prepare_sources<T, true, true>(m, s, a.offsets, tap, count);
    prepare_hats<T, true, true>(m, s, a.offsets, tap, count);
    device::sync_block();
    float dots[kTapsAtOnce][2][4] = {};
    for (int group = id.warp * kGroup; group < s.channels; group += device::threads() / kWarp * kGroup) {
      const int channel = group + id.t * kLaneChannels;
      WeightFragments<T, kSteps> held;
      held.load_all(a.weight, s, id, group);
      float grad[2][kLaneChannels];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = id.g + 8 * i;
        a.grad.load(m.rows[r].n < s.batch ? int(first) + r : -1, channel, grad[i]);
      }
#pragma unroll
      for (int slot = 0; slot < kTapsAtOnce; ++slot) {
        if (slot >= count) continue;
        float sampled[2][kLaneChannels];
        sample_kernels(m, s, a.weight, id, group, held, slot, sampled);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float pixel[kLaneChannels];
            a.input.load(m.corners[slot * kRows + id.g + 8 * i].pixel[j], channel, pixel);
#pragma unroll
            for (int c = 0; c < kLaneChannels; ++c) dots[slot][i][j] += grad[i][c] * sampled[i][c] * pixel[c];
          }
      }
    }
    Slopes slopes = {};
#pragma unroll
    for (int slot = 0; slot < kTapsAtOnce; ++slot)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Position p = m.rows[id.g + 8 * i];
        if (slot >= count || p.n >= s.batch) continue;
        const int at = tap + slot;
        const int tap_y = s.by_kernel_w.quotient(at), tap_x = at - tap_y * s.kernel_w;
        const DataPoint d = data_point<T>(s, a.offsets.data, p, at, tap_y, tap_x);
        const float(&dot)[4] = dots[slot][i];
        slopes[slot][i][0] = (1 - d.fx) * (dot[2] - dot[0]) + d.fx * (dot[3] - dot[1]);
        slopes[slot][i][1] = (1 - d.fy) * (dot[1] - dot[0]) + d.fy * (dot[3] - dot[2]);
      }
    write_slopes<T>(m, s, a.grad_offsets.data, sums, tap, slopes);
  }
}

}  // namespace dk
