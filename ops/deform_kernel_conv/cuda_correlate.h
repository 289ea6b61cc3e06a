// Sums over taps of sampled kernel times pixel. It is the forward pass, with results at output positions and pixels of
// the input, and dL/dinput, with results at input pixels and the output's gradient for pixels: a gather in both, so
// without atomics. With data offsets dL/dinput has to scatter; see scatter.h.
#pragma once

#include "cuda_taps.h"

namespace dk {

template <class T>
struct CorrelateArguments {
  Sizes sizes;
  Volume results;
  Offsets offsets;
  Pixels<const T> source;
  Weight<T> weight;
  Pixels<T> result;
  int taps_at_once;
  Runs runs;  // of tiles
};

// The channel that a lane has of the first of a group's products; of product j it is 2 j more.
DK_DEVICE int lane_channel(const Lane& id, int group) { return group + kLaneChannels * (id.g / 2) + id.g % 2; }

// A warp's part of the weight, as B of the products. kSteps = 0: too many steps to hold, so they are read when needed.
template <class T, int kSteps, int kHalfSteps = Traits<T>::kHalfSteps>
struct WeightFragments {  // of TF32, by product, step, part and half step
  float values[kProducts][kSteps ? kSteps : 1][2][kHalfSteps];

  DK_DEVICE void load(const Weight<T>& weight, const Sizes& s, const Lane& id, int group, int step, int held) {
#pragma unroll
    for (int j = 0; j < kProducts; ++j)
#pragma unroll
      for (int k = 0; k < kHalfSteps; ++k) {
        const HalfStep half = half_step<kSteps != 0>(s, kHalfSteps * step + k);
        set(j, held, k, static_cast<float>(weight.at(s, lane_channel(id, group) + 2 * j, half, id.t)));
      }
  }

  template <int kProduct>
  DK_DEVICE void load_packed(const Weight<T>& weight, const Sizes& s, const Lane& id, int group) {
    uint32_t row[sizeof(T)];  // 4 values
    weight.template load<2 * kProduct>(row, s, lane_channel(id, group), 4 * id.t);
#pragma unroll
    for (int k = 0; k < kSteps * kHalfSteps; ++k)
      set(kProduct, k / kHalfSteps, k % kHalfSteps, Packed<T>::value(row, k));
  }

 private:
  DK_DEVICE void set(int j, int step, int k, float value) {
    split_stored<T>(value, values[j][step][0][k], values[j][step][1][k]);
  }
};

template <class T, int kSteps>
struct WeightFragments<T, kSteps, 4> {  // of stored values, two a word
  uint32_t words[kProducts][kSteps ? kSteps : 1][2];

  DK_DEVICE void load(const Weight<T>& weight, const Sizes& s, const Lane& id, int group, int step, int held) {
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
      T row[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        row[k] = weight.at(s, lane_channel(id, group) + 2 * j, half_step<kSteps != 0>(s, 4 * step + k), id.t);
      words[j][held][0] = pair_of(row[0], row[1]), words[j][held][1] = pair_of(row[2], row[3]);
    }
  }

  template <int kProduct>
  DK_DEVICE void load_packed(const Weight<T>& weight, const Sizes& s, const Lane& id, int group) {
    weight.template load<2 * kProduct>(words[kProduct][0], s, lane_channel(id, group), 4 * id.t);
  }
};

// All steps of some groups.
template <class T, int kSteps, int kGroups>
DK_DEVICE void load_weight(WeightFragments<T, kSteps> (&held)[kGroups], const Weight<T>& weight, const Sizes& s,
                           int first) {
  if constexpr (kSteps > 0) {
    const Lane id;
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      const int group = first + u * kGroup;
      if (weight.packed) {
        unrolled<kProducts>([&](auto j) { held[u].template load_packed<j.value>(weight, s, id, group); });
      } else {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) held[u].load(weight, s, id, group, step, step);
      }
    }
  }
}

// A step of coefficients, as A of the products. What splitting has taken off TF32's operands is summed apart, as
// `rest`: the tensor core rounds sums towards zero, and with the rest there would be three times as many large ones.
template <class T, int kHalfSteps = Traits<T>::kHalfSteps>
struct Hats {
  static constexpr bool kSplit = Traits<T>::kSplitHats, kSplitWeight = Traits<T>::kSplitWeight,
                        kRest = kSplit || kSplitWeight;
  float parts[2][kFragment];

  DK_DEVICE Hats(const TileMemory& m, int index, int lane) { load_parts<kSplit>(m.hats, index, lane, parts); }

  // d += coefficients times product j of the weight, or = where it is the `first`.
  template <int kSteps>
  DK_DEVICE void multiply_by(const WeightFragments<T, kSteps>& weight, int j, int held, bool first, float (&d)[4],
                             float (&rest)[4]) const {
    multiply_rest<kSplit, kSplitWeight>(rest, parts, weight.values[j][held], first);
    multiply<false, false>(d, parts, weight.values[j][held], first);
  }
};

template <class T>
struct Hats<T, 4> {  // of float16; a result has no more bits, so that both parts go into one sum
  static constexpr bool kRest = false;
  Packet high, low;

  DK_DEVICE Hats(const TileMemory& m, int index, int lane)
      : high(load_packet(m.hats, 2 * index, lane)), low(load_packet(m.hats, 2 * index + 1, lane)) {}

  template <int kSteps>
  DK_DEVICE void multiply_by(const WeightFragments<T, kSteps>& weight, int j, int held, bool first, float (&d)[4],
                             float (&)[4]) const {
    if (first) d[0] = d[1] = d[2] = d[3] = 0.0f;
    device::mma(d, low.word, weight.words[j][held], d);
    device::mma(d, high.word, weight.words[j][held], d);
  }
};

// The sampled kernels of tap `slot`, by product, in the layout of C.
template <class T, int kSteps>
DK_DEVICE void sample_kernels(const TileMemory& m, const Sizes& s, const Weight<T>& weight, const Lane& id, int group,
                              WeightFragments<T, kSteps>& held, int slot, float (&d)[kProducts][4]) {
  float rest[kProducts][4];
  const int steps = kSteps ? kSteps : m.steps;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const Hats<T> hats(m, slot * steps + step, id.lane);
    if (kSteps == 0) held.load(weight, s, id, group, step, 0);
#pragma unroll
    for (int j = 0; j < kProducts; ++j) hats.multiply_by(held, j, kSteps ? step : 0, step == 0, d[j], rest[j]);
  }
  if (Hats<T>::kRest)
#pragma unroll
    for (int j = 0; j < kProducts; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) d[j][k] += rest[j][k];
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
DK_DEVICE void add_taps(const CorrelateArguments<T>& a, const TileMemory& m,
                        WeightFragments<T, kSteps> (&held)[kGroups], int count,
                        float (&sum)[kGroups][2][kLaneChannels]) {
  const Lane id;
  const int channel = first_channel<kGroups>(id);
  const LaneView<const T, kGroups> source(a.source, channel + id.t * kLaneChannels);
#pragma unroll 1
  for (TileMemory tap = m; count > 0; --count, tap = tap.next<Traits<T>::kSplitHats>())
    unrolled<kGroups>([&](auto u) {
      float sampled[kProducts][4];
      const auto sample = [&] {
        sample_kernels(tap, a.sizes, a.weight, id, channel + u.value * kGroup, held[u.value], 0, sampled);
      };
      if (kSteps == 0) sample();  // loads that leave no registers for those of pixels
      const auto read = read_source<kData, 8, u.value>(tap, source, 0, id.g);
      if (kSteps != 0) sample();
#pragma unroll
      for (int j = 0; j < kProducts; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[u.value][k / 2][2 * j + k % 2] += sampled[j][k] * read.at(k / 2, 2 * j + k % 2);
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
  const TileMemory m(a.taps_at_once, s.steps(Traits<T>::kHalfSteps), Traits<T>::kSplitHats);
  WeightFragments<T, kSteps> held[kGroups];
  load_weight(held, a.weight, s, first_channel<kGroups>(Lane()));
  for (int tile = a.runs.begin(); tile < a.runs.end(); ++tile) {
    float sum[kGroups][2][kLaneChannels] = {};
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();  // for what the memory held before
      prepare_points<T, kData, kForward>(m, s, a.results, a.offsets, tile * kRows, tap, count);
      device::sync_block();
      prepare_hats<T, kSteps>(m, s, count);
      device::sync_block();
      add_taps<T, kSteps, kData>(a, m, held, count, sum);
    }
    store_results(a, tile * kRows, sum);
  }
}

}  // namespace dk
