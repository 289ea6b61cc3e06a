// Sums over taps of sampled kernel times pixel. It is the forward pass, with results at output positions and pixels of
// the input, and dL/dinput, with results at input pixels and the output's gradient for pixels: a gather in both, so
// without atomics. With data offsets dL/dinput has to scatter; see scatter.h.
#pragma once

#include "taps.h"

namespace dk {

template <class T>
struct CorrelateArguments {
  Sizes sizes;
  Offsets offsets;
  Pixels<const T> source;
  Weight<T> weight;
  Pixels<T> result;
  int taps_at_once;
};

// A warp's part of the weight, as B of the products. kSteps = 0: too many steps to hold, so they are read when needed.
template <class T, int kSteps>
struct WeightFragments {
  float values[kProducts][kSteps ? kSteps : 1][2][2];

  DK_DEVICE void load(const Weight<T>& weight, const Sizes& s, const Lane& id, int channel, int j, int step, int held) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int column = channel + kLaneChannels * (id.g / 2) + 2 * j + id.g % 2;
      const Split split(weight.at(s, column, 2 * step + k, id.t));
      values[j][held][0][k] = split.high, values[j][held][1][k] = split.low;
    }
  }

  DK_DEVICE void load_all(const Weight<T>& weight, const Sizes& s, const Lane& id, int channel) {
    if constexpr (kSteps > 0)
#pragma unroll
      for (int j = 0; j < kProducts; ++j)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) load(weight, s, id, channel, j, step, step);
  }
};

// The sampled kernels of tap `slot`: sampled[i][c] for row g + 8 i and the lane's channel c.
template <class T, int kSteps>
DK_DEVICE void sample_kernels(const TileMemory& m, const Sizes& s, const Weight<T>& weight, const Lane& id, int channel,
                              WeightFragments<T, kSteps>& held, int slot, float (&sampled)[2][kLaneChannels]) {
  float d[kProducts][4];
  const int steps = kSteps ? kSteps : m.steps;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    float hats[2][kFragment];
#pragma unroll
    for (int part = 0; part < (Traits<T>::kSplitHats ? 2 : 1); ++part)
#pragma unroll
      for (int k = 0; k < kFragment; ++k) hats[part][k] = m.fragment(slot, step, part, id.lane)[k];
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
      if (kSteps == 0) held.load(weight, s, id, channel, j, step, 0);
      multiply<Traits<T>::kSplitHats, Traits<T>::kSplitWeight>(d[j], hats, held.values[j][kSteps ? step : 0], step == 0);
    }
  }
#pragma unroll
  for (int j = 0; j < kProducts; ++j) {
    sampled[0][2 * j] = d[j][0], sampled[0][2 * j + 1] = d[j][1];
    sampled[1][2 * j] = d[j][2], sampled[1][2 * j + 1] = d[j][3];
  }
}

// Grid: (tiles of 16 results, chunks of as many groups of 32 channels as there are warps).
template <class T, int kSteps, bool kData, bool kForward>
DK_KERNEL void correlate(const CorrelateArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int group = (device::block_y() * (device::threads() / kWarp) + id.warp) * kGroup;
  const int channel = group + id.t * kLaneChannels;
  const TileMemory m(a.taps_at_once, s.steps(), Traits<T>::kSplitHats);
  const int64_t first = device::block_x() * kRows;
  const int height = kForward ? s.out_height : s.height, width = kForward ? s.out_width : s.width;
  place_rows(m, first, s.batch, height, width);
  WeightFragments<T, kSteps> held;
  held.load_all(a.weight, s, id, group);
  float sum[2][kLaneChannels] = {};
  for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
    const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
    device::sync_block();
    prepare_sources<T, kData, kForward>(m, s, a.offsets, tap, count);
    prepare_hats<T, kData, kForward>(m, s, a.offsets, tap, count);
    device::sync_block();
    for (int slot = 0; slot < count; ++slot) {
      float pixels[2][kLaneChannels], sampled[2][kLaneChannels];
#pragma unroll
      for (int i = 0; i < 2; ++i) read_source<kData>(m, a.source, slot, id.g + 8 * i, channel, pixels[i]);
      sample_kernels(m, s, a.weight, id, group, held, slot, sampled);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int c = 0; c < kLaneChannels; ++c) sum[i][c] += sampled[i][c] * pixels[i][c];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (m.rows[id.g + 8 * i].n < s.batch) a.result.store(int(first) + id.g + 8 * i, channel, sum[i]);
}

}  // namespace dk
