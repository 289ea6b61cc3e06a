// Sums over taps of sampled kernel times pixel. It is the forward pass, with results at output positions and pixels of
// the input, and dL/dinput, with results at input pixels and the output's gradient for pixels: a gather in both, so
// without atomics. With data offsets dL/dinput has to scatter; see scatter.h.
#pragma once

#include "taps.h"

namespace dk {

template <class T>
struct CorrelateArguments {
  Sizes sizes;
  Volume results;
  Offsets offsets;
  Pixels<const T> source;
  Weight<T> weight;
  Pixels<T> result;
  int taps_at_once, tiles, tiles_per_block;
};

// A warp's part of the weight, as B of the products. kSteps = 0: too many steps to hold, so they are read when needed.
template <class T, int kSteps>
struct WeightFragments {
  float values[kProducts][kSteps ? kSteps : 1][2][2];

  DK_DEVICE void load(const Weight<T>& weight, const Sizes& s, const Lane& id, int group, int step, int held) {
#pragma unroll
    for (int j = 0; j < kProducts; ++j)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const HalfStep half = half_step<kSteps != 0>(s, 2 * step + k);
        const Split split(weight.at(s, group + kLaneChannels * (id.g / 2) + 2 * j + id.g % 2, half.band, half.column, id.t));
        values[j][held][0][k] = split.high, values[j][held][1][k] = split.low;
      }
  }

  DK_DEVICE void load_all(const Weight<T>& weight, const Sizes& s, const Lane& id, int group) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load(weight, s, id, group, step, step);
  }
};

// The sampled kernels of tap `slot`, product by product: use(j, d), d in the layout of C. What splitting has taken off is
// summed apart: the tensor core rounds sums towards zero, and with the rest there would be three times as many large ones.
template <class T, int kSteps, class F>
DK_DEVICE void sample_kernels(const TileMemory& m, const Sizes& s, const Weight<T>& weight, const Lane& id, int group,
                              WeightFragments<T, kSteps>& held, int slot, const F& use) {
  constexpr bool kSplit = Traits<T>::kSplitHats, kSplitWeight = Traits<T>::kSplitWeight;
  float d[kProducts][4], rest[kProducts][4];
  const int steps = kSteps ? kSteps : m.steps;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    float hats[2][kFragment];
    load_parts<kSplit>(m.hats, slot * steps + step, id.lane, hats);
    if (kSteps == 0) held.load(weight, s, id, group, step, 0);
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
      const float(&b)[2][2] = held.values[j][kSteps ? step : 0];
      multiply_rest<kSplit, kSplitWeight>(rest[j], hats, b, step == 0);
      multiply<false, false>(d[j], hats, b, step == 0);
    }
  }
#pragma unroll
  for (int j = 0; j < kProducts; ++j) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (kSplit || kSplitWeight) d[j][k] += rest[j][k];
    use(j, d[j]);
  }
}

// Groups of channels that a warp takes: one where registers do not hold the weight and the pixels of two.
template <class T, int kSteps, bool kData>
constexpr int kGroupsOf = kSteps && !kData ? Traits<T>::kGroups : 1;

// The first of a warp's channels.
template <int kGroups>
DK_DEVICE int first_channel(const Lane& id) {
  return (device::block_y() * (device::threads() / kWarp) + id.warp) * kGroups * kGroup;
}

template <class T, int kSteps, bool kData, int kGroups>
DK_DEVICE void add_taps(const CorrelateArguments<T>& a, const TileMemory& m, WeightFragments<T, kSteps> (&held)[kGroups],
                        int count, float (&sum)[kGroups][2][kLaneChannels]) {
  const Lane id;
  const int channel = first_channel<kGroups>(id);
  const LaneView<const T, kGroups> source(a.source, channel + id.t * kLaneChannels);
#pragma unroll 1
  for (TileMemory tap = m; count > 0; --count, tap = tap.next<Traits<T>::kSplitHats>())
    unrolled<kGroups>([&](auto u) {
      const auto read = read_source<kData, 8, u.value>(tap, source, 0, id.g);
      sample_kernels(tap, a.sizes, a.weight, id, channel + u.value * kGroup, held[u.value], 0,
                     [&](int j, const float(&sampled)[4]) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[u.value][k / 2][2 * j + k % 2] += sampled[k] * read.at(k / 2, 2 * j + k % 2);
      });
    });
}

template <class T, int kGroups>
DK_DEVICE void store_results(const CorrelateArguments<T>& a, int first, const float (&sum)[kGroups][2][kLaneChannels]) {
  const Lane id;
  const LaneView<T, kGroups> result(a.result, first_channel<kGroups>(id) + id.t * kLaneChannels);
  unrolled<kGroups>([&](auto u) {
#pragma unroll
    for (int i = 0; i < 2; ++i) result.template store<u.value>(first + id.g + 8 * i, sum[u.value][i]);
  });
}

// Grid: (runs of tiles of 16 results, chunks of as many times kGroups groups of 32 channels as there are warps).
template <class T, int kSteps, bool kData, bool kForward>
DK_KERNEL void DK_BOUNDS(kMostWarps, 2) correlate(const CorrelateArguments<T> a) {
  constexpr int kGroups = kGroupsOf<T, kSteps, kData>;
  const Sizes& s = a.sizes;
  const TileMemory m(a.taps_at_once, s.steps(), Traits<T>::kSplitHats);
  WeightFragments<T, kSteps> held[kGroups];
#pragma unroll
  for (int u = 0; u < kGroups; ++u) held[u].load_all(a.weight, s, Lane(), first_channel<kGroups>(Lane()) + u * kGroup);
  const int begin = int(device::block_x()) * a.tiles_per_block;
  const int end = begin + a.tiles_per_block < a.tiles ? begin + a.tiles_per_block : a.tiles;
  for (int tile = begin; tile < end; ++tile) {
    float sum[kGroups][2][kLaneChannels] = {};
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();  // for what the memory held before
      prepare_points<T, kData, kForward>(m, s, a.results, a.offsets, tile * kRows, tap, count);
      device::sync_block();
      prepare_hats<Traits<T>::kSplitHats, kSteps>(m, s, count);
      device::sync_block();
      add_taps<T, kSteps, kData>(a, m, held, count, sum);
    }
    store_results(a, tile * kRows, sum);
  }
}

}  // namespace dk
