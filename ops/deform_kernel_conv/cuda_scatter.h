// dL/dinput with data offsets: every tap adds to the four pixels it has read. The sum is in float, in channels_last
// order. With atomics the order of additions differs from run to run; `ordered` gives each image and group of channels
// to one warp, which adds row by row, so that results are the same bits every time.
#pragma once

#include "cuda_correlate.h"

namespace dk {

template <class T>
struct ScatterArguments {
  Sizes sizes;
  Volume positions;
  Offsets offsets;
  Pixels<const T> grad;
  Weight<T> weight;
  float* sum;  // (N, H, W, channels of grad)
  int taps_at_once;
  Runs runs;  // of tiles; if not ordered
};

template <bool kOrdered, class T>
DK_DEVICE void add_to_corners(const ScatterArguments<T>& a, const Corners& corners, bool exists, int channel,
                              const float (&terms)[kLaneChannels]) {
  if (!exists || channel >= a.grad.channels) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (corners.pixel[j] < 0) continue;
    float* to = a.sum + int64_t(corners.pixel[j]) * a.grad.channels + channel;
#pragma unroll
    for (int c = 0; c < kLaneChannels; c += 4) {
      float values[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) values[k] = corners.value[j] * terms[c + k];
      if (kOrdered)
        for (int k = 0; k < 4; ++k) to[c + k] += values[k];
      else
        device::add_atomic(to + c, values);
    }
  }
}

// Grid: (runs of output positions, chunks of channels). Ordered: a run is an image.
template <class T, int kSteps, bool kOrdered>
DK_KERNEL void DK_BOUNDS(kMostWarps, 2) scatter(const ScatterArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int group = (device::block_y() * (device::threads() / kWarp) + id.warp) * kGroup;
  const int channel = group + id.t * kLaneChannels;
  const LaneView<const T> view(a.grad, channel);
  const TileMemory m(a.taps_at_once, s.steps(Traits<T>::kHalfSteps), Traits<T>::kSplitHats);
  WeightFragments<T, kSteps> held[1];
  load_weight(held, a.weight, s, group);
  const int block = int(device::block_x()), image = s.out_height * s.out_width;
  const int last = kOrdered ? (block + 1) * image : a.runs.end() * kRows;
  const int end = last < a.positions.count ? last : a.positions.count;
  for (int first = kOrdered ? block * image : a.runs.begin() * kRows; first < end; first += kRows) {
    Channels<T> grad[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = first + id.g + 8 * i;
      grad[i] = view.load(position < end ? position : -1);
    }
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();  // for what the memory held before
      prepare_points<T, true, true>(m, s, a.positions, a.offsets, first, tap, count);
      device::sync_block();
      prepare_hats<T, kSteps>(m, s, count);
      device::sync_block();
      for (int slot = 0; slot < count; ++slot) {
        float sampled[kProducts][4], terms[2][kLaneChannels];  // gradient times sampled kernel
        sample_kernels(m, s, a.weight, id, group, held[0], slot, sampled);
#pragma unroll
        for (int k = 0; k < kProducts * 4; ++k)
          terms[k / 8][k % 8] = sampled[k % 8 / 2][k / 8 * 2 + k % 2] * grad[k / 8][k % 8];
        for (int turn = 0; turn < (kOrdered ? kRows : 1); ++turn) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int r = id.g + 8 * i;
            if (!kOrdered || turn == r)
              add_to_corners<kOrdered>(a, m.corners[slot * kRows + r], first + r < end, channel, terms[i]);
          }
          if (kOrdered) device::sync_warp();
        }
      }
    }
  }
}

}  // namespace dk
