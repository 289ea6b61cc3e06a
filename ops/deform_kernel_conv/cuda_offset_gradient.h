// Gradients of kernel and data offsets of tiles of 16 positions. The warps of a block share out the channels and add up
// in the end, so there are no atomics.
//
// Kernel offsets: G = (gradient times pixel) (positions x channels) times weight (channels x scope samples), against
// the hats' derivatives. Data offsets: per corner, the sum over channels of gradient times sampled kernel times pixel.
#pragma once

#include "cuda_correlate.h"

namespace dk {

constexpr int kSampleBlocks = 2;  // products of 8 scope samples at a time: 4 x 4 in one go, larger scopes in several

template <class T>
struct OffsetGradientArguments {
  Sizes sizes;
  Volume positions;
  Offsets offsets, grad_offsets;
  Pixels<const T> input, grad;
  Weight<T> weight;
  Runs runs;  // of tiles
};

// A tap's derivatives by (dy, dx), for rows g and g + 8.
typedef float Slopes[2][2];

// Adds them up over the 4 lanes of a row: lane t keeps row g + 8 (t % 2) and axis t / 2.
DK_DEVICE float sum_of_lanes(const Slopes& slopes, int t) {
  const bool odd = t & 1, second = t & 2;
  float kept[2];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis)
    kept[axis] =
        (odd ? slopes[1][axis] : slopes[0][axis]) + device::shuffle_xor(odd ? slopes[0][axis] : slopes[1][axis], 1);
  return (second ? kept[1] : kept[0]) + device::shuffle_xor(second ? kept[0] : kept[1], 2);
}

// What every warp has summed up, in shared memory: (warps, taps, 2 axes, 16 rows). A word between the axes lets threads
// read along rows and along taps without meeting in a bank.
template <int kTaps>
struct SlopeSums {
  static constexpr int kChannels = 2 * kTaps, kPitch = kRows + 1;

  float* memory;

  static DK_HOST_DEVICE size_t bytes(int warps) { return size_t(warps) * kChannels * kPitch * sizeof(float); }

  DK_DEVICE float& at(int warp, int channel, int row) const {
    return memory[(warp * kChannels + channel) * kPitch + row];
  }

  DK_DEVICE void clear() const {
    const Lane id;
#pragma unroll
    for (int slot = 0; slot < kTaps; ++slot) at(id.warp, 2 * slot + id.lane / kRows, id.lane % kRows) = 0;
  }

  DK_DEVICE void add(int slot, const Slopes& slopes) const {
    const Lane id;
    at(id.warp, 2 * slot + id.t / 2, id.g + 8 * (id.t % 2)) += sum_of_lanes(slopes, id.t);
  }

  // Adds the warps' sums in their order; writes the gradient of offsets `tap` on at positions `first` on. Threads
  // follow each other along what is adjacent in memory: the offsets' channels, or else positions.
  template <class T>
  DK_DEVICE void write(const Sizes& s, const Volume& positions, const OffsetView& to, int first, int tap) const {
    for (unsigned i = device::thread(); i < unsigned(kChannels * kRows); i += device::threads()) {
      const bool along = to.c == 1;
      const int channel = along ? i % kChannels : i / kRows, row = along ? i / kChannels : i % kRows;
      if (2 * tap + channel >= 2 * s.taps() || first + row >= positions.count) continue;
      float sum = at(0, channel, row);
      for (int warp = 1; warp < device::threads() / kWarp; ++warp) sum += at(warp, channel, row);
      to.set<T>(to.index(positions.at(first + row), 2 * tap + channel), sum);
    }
  }
};

// A lane's channels of pixels `row` and `row` + 8, as floats.
template <class T, int kGroups>
DK_DEVICE void load_rows(const LaneView<const T, kGroups>& from, int row, float (&values)[kGroups][2][kLaneChannels]) {
  unrolled<kGroups>([&](auto u) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Channels<T> loaded = from.template load<u.value>(row + 8 * i);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) values[u.value][i][c] = loaded[c], device::hold(values[u.value][i][c]);
    }
  });
}

// The half step of product `block` + b that holds its samples 4 h .. 4 h + 3. So a row has neighbours in the two
// products.
template <bool kOneBand>
DK_DEVICE HalfStep sample_half(const Sizes& s, int block, int b, int h) {
  return half_step<kOneBand>(s, 2 * block + kSampleBlocks * h + b);
}

// The hats' derivatives by dy and dx in the layout of C: 16 positions x 8 scope samples from product `block` on, and
// the same for the products that follow. A warp makes a tap at a time.
template <int kSteps>
DK_DEVICE void prepare_slopes(const TileMemory& m, const Sizes& s, int block, int count) {
  const Lane id;
  for (int slot = id.warp; slot < count; slot += device::threads() / kWarp) {
    const HatPoint points[2] = {m.points[slot * kRows + id.g], m.points[slot * kRows + id.g + 8]};
#pragma unroll
    for (int b = 0; b < kSampleBlocks; ++b) {
      const HalfStep half = sample_half<kSteps != 0>(s, block, b, id.t >> 1);
      float by_y[kFragment], by_x[kFragment];
#pragma unroll
      for (int k = 0; k < kFragment; ++k) {
        const HatPoint& p = points[k / 2];
        const int row = half.band * 4 + (id.t & 1) * 2 + k % 2;
        by_y[k] = hat_slope(p.knots.y, row) * hat(p.x, half.column) + p.nan;
        by_x[k] = hat_slope(p.knots.x, half.column) * hat(p.y, row) + p.nan;
      }
      store_packet(m.hats, (slot * kSampleBlocks + b) * 2, id.lane, by_y);
      store_packet(m.hats, (slot * kSampleBlocks + b) * 2 + 1, id.lane, by_x);
    }
  }
}

// The weight of some groups as B: channels 8t + 2j and 8t + 2j + 1 by scope sample g of 8, that is half g / 4 and row g
// % 4. Loaded when other groups or other products are asked for.
template <class T, int kSteps, int kGroups>
struct TransposedWeight {
  float values[kGroups][kSampleBlocks][kProducts][2][2];
  int channel = -1, block = -1;

  DK_DEVICE void load(const Weight<T>& weight, const Sizes& s, int channel_, int block_) {
    if (channel == channel_ && block == block_) return;
    channel = channel_, block = block_;
#pragma unroll
    for (int u = 0; u < kGroups; ++u)
      if (kSteps && weight.packed)
        load_packed(weight, s, channel + u * kGroup, values[u]);
      else
        load_group(weight, s, block, channel + u * kGroup, values[u]);
  }

 private:
  typedef float Group[kSampleBlocks][kProducts][2][2];

  static DK_DEVICE void load_group(const Weight<T>& weight, const Sizes& s, int block, int group, Group& values) {
    const Lane id;
#pragma unroll
    for (int b = 0; b < kSampleBlocks; ++b) {
      const HalfStep half = sample_half<kSteps != 0>(s, block, b, id.g >> 2);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i)
        set(values, b, i, static_cast<float>(weight.at(s, group + id.t * kLaneChannels + i, half, id.g & 3)));
    }
  }

  static DK_DEVICE void load_packed(const Weight<T>& weight, const Sizes& s, int group, Group& values) {
    const Lane id;
    unrolled<kLaneChannels>([&](auto i) {
      uint32_t both[sizeof(T) / 2];  // two columns
      weight.template load<i.value>(both, s, group + id.t * kLaneChannels, (id.g & 3) * 4 + (id.g >> 2) * 2);
#pragma unroll
      for (int b = 0; b < kSampleBlocks; ++b) set(values, b, i.value, Packed<T>::value(both, b));
    });
  }

  static DK_DEVICE void set(Group& values, int b, int i, float value) {
    split_stored<T>(value, values[b][i / 2][0][i % 2], values[b][i / 2][1][i % 2]);
  }
};

template <class T, int kSteps, bool kData>
constexpr int kOffsetGroupsOf = kSteps && !kData ? Traits<T>::kOffsetGroups : 1;

constexpr int kKernelTaps = 9;  // at a time: the gradient is loaded once for all
template <bool kData, int kGroups>
constexpr int kTapBatch = kData || kGroups > 1 ? 1 : 3;  // of which side by side, by registers

// Some groups' part in the derivatives of kTapBatch taps from `slot` on, from kSampleBlocks products of scope samples.
template <class T, int kSteps, bool kData, int kGroups>
DK_DEVICE void add_groups(const TileMemory& m, const SlopeSums<kKernelTaps>& sums,
                          const LaneView<const T, kGroups>& input, const float (&grad)[kGroups][2][kLaneChannels],
                          const TransposedWeight<T, kSteps, kGroups>& weight, int slot) {
  const Lane id;
  constexpr int kTaps = kTapBatch<kData, kGroups>;
  float gradients[kTaps][kSampleBlocks][4] = {};  // G
#pragma unroll
  for (int i = 0; i < kTaps; ++i)
    unrolled<kGroups>([&](auto group) {
      const auto read = read_source<kData, 8, group.value>(m, input, slot + i, id.g);
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        float u[2][kFragment];
#pragma unroll
        for (int k = 0; k < kFragment; ++k) {
          const Split split(grad[group.value][k % 2][2 * j + k / 2] * read.at(k % 2, 2 * j + k / 2));
          u[0][k] = split.high, u[1][k] = split.low;
        }
#pragma unroll
        for (int b = 0; b < kSampleBlocks; ++b)
          multiply<Traits<T>::kSplitProducts, Traits<T>::kSplitWeight>(gradients[i][b], u,
                                                                       weight.values[group.value][b][j]);
      }
    });
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    Slopes slopes = {};
#pragma unroll
    for (int b = 0; b < kSampleBlocks; ++b)
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        float derivative[kFragment];
        load_packet(m.hats, ((slot + i) * kSampleBlocks + b) * 2 + axis, id.lane, derivative);
#pragma unroll
        for (int k = 0; k < 4; ++k) slopes[k / 2][axis] += gradients[i][b][k] * derivative[k];
      }
    sums.add(slot + i, slopes);
  }
}

// Grid: (runs of tiles of 16 positions).
template <class T, int kSteps, bool kData>
DK_KERNEL void DK_BOUNDS(kMostWarps, Traits<T>::kBlocks) kernel_offset_gradient(const OffsetGradientArguments<T> a) {
  const Sizes& s = a.sizes;
  const TileMemory m(kKernelTaps, kSampleBlocks, true);
  const SlopeSums<kKernelTaps> sums{m.end<kData>(kKernelTaps)};
  constexpr int kGroups = kOffsetGroupsOf<T, kSteps, kData>;
  TransposedWeight<T, kSteps, kGroups> weight;
  for (int tile = a.runs.begin(); tile < a.runs.end(); ++tile)
    for (int tap = 0; tap < s.taps(); tap += kKernelTaps) {
      device::sync_block();  // for what the memory held before
      prepare_points<T, kData, true, true>(m, s, a.positions, a.offsets, tile * kRows, tap, kKernelTaps);
      sums.clear();
      for (int block = 0; block < (kSteps ? kSampleBlocks : s.steps(2)); block += kSampleBlocks) {
        device::sync_block();
        prepare_slopes<kSteps>(m, s, block, kKernelTaps);
        device::sync_block();
        const int each = kGroups * kGroup, warps = device::threads() / kWarp;
        for (int channel = Lane().warp * each; channel < s.channels; channel += warps * each) {
          const Lane id;
          const LaneView<const T, kGroups> input(a.input, channel + id.t * kLaneChannels);
          float grad[kGroups][2][kLaneChannels];
          load_rows(LaneView<const T, kGroups>(a.grad, channel + id.t * kLaneChannels), tile * kRows + id.g, grad);
          weight.load(a.weight, s, channel, block);
#pragma unroll 1
          for (int slot = 0; slot < kKernelTaps && tap + slot < s.taps(); slot += kTapBatch<kData, kGroups>)
            add_groups<T, kSteps, kData>(m, sums, input, grad, weight, slot);
        }
      }
      device::sync_block();
      sums.write<T>(s, a.positions, a.grad_offsets.kernel, tile * kRows, tap);
    }
}

constexpr int kDataTaps = 3;  // a row of a 3 x 3 kernel

// Of every corner that a tap reads: the sum over channels of gradient times sampled kernel times pixel.
template <class T, int kSteps>
DK_DEVICE void dot_with_corners(const OffsetGradientArguments<T>& a, const TileMemory& m, int first, int count,
                                float (&dots)[kDataTaps][2][4]) {
  const Lane id;
  const Sizes& s = a.sizes;
  for (int group = id.warp * kGroup; group < s.channels; group += device::threads() / kWarp * kGroup) {
    const LaneView<const T> input(a.input, group + id.t * kLaneChannels), grads(a.grad, group + id.t * kLaneChannels);
    WeightFragments<T, kSteps> held[1];
    load_weight(held, a.weight, s, group);
    const Channels<T> grad[2] = {grads.load(first + id.g), grads.load(first + id.g + 8)};
#pragma unroll
    for (int slot = 0; slot < kDataTaps; ++slot) {
      if (slot >= count) continue;
      float sampled[kProducts][4], terms[2][kLaneChannels];  // gradient times sampled kernel
      sample_kernels(m, s, a.weight, id, group, held[0], slot, sampled);
#pragma unroll
      for (int k = 0; k < kProducts * 4; ++k)
        terms[k / 8][k % 8] = sampled[k % 8 / 2][k / 8 * 2 + k % 2] * grad[k / 8][k % 8];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Channels<T> pixel = input.load(m.corners[slot * kRows + id.g + 8 * i].pixel[j]);
#pragma unroll
          for (int c = 0; c < kLaneChannels; ++c) dots[slot][i][j] += terms[i][c] * pixel[c];
        }
    }
  }
}

// Grid: (runs of tiles of 16 positions).
template <class T, int kSteps>
DK_KERNEL void DK_BOUNDS(kMostWarps, Traits<T>::kBlocks) data_offset_gradient(const OffsetGradientArguments<T> a) {
  const Sizes& s = a.sizes;
  const TileMemory m(kDataTaps, s.steps(Traits<T>::kHalfSteps), Traits<T>::kSplitHats);
  const SlopeSums<kDataTaps> sums{m.end<true>(kDataTaps)};
  for (int tile = a.runs.begin(); tile < a.runs.end(); ++tile)
    for (int tap = 0; tap < s.taps(); tap += kDataTaps) {
      const int count = s.taps() - tap < kDataTaps ? s.taps() - tap : kDataTaps, first = tile * kRows;
      device::sync_block();  // for what the memory held before
      prepare_points<T, true, true>(m, s, a.positions, a.offsets, first, tap, kDataTaps);
      sums.clear();
      device::sync_block();
      prepare_hats<T, kSteps>(m, s, count);
      device::sync_block();
      float dots[kDataTaps][2][4] = {};
      dot_with_corners<T, kSteps>(a, m, first, count, dots);
      const Lane id;
#pragma unroll
      for (int slot = 0; slot < kDataTaps; ++slot) {
        Slopes slopes = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float (&coefficients)[4] = m.corners[slot * kRows + id.g + 8 * i].value;
          const float fx = coefficients[1] + coefficients[3], fy = coefficients[2] + coefficients[3];
          const float (&dot)[4] = dots[slot][i];
          slopes[i][0] = (1 - fx) * (dot[2] - dot[0]) + fx * (dot[3] - dot[1]);
          slopes[i][1] = (1 - fy) * (dot[1] - dot[0]) + fy * (dot[3] - dot[2]);
        }
        sums.add(slot, slopes);
      }
      device::sync_block();
      sums.write<T>(s, a.positions, a.grad_offsets.data, first, tap);
    }
}

}  // namespace dk
