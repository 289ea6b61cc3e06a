// dL/dinput with data offsets: every tap adds to the four pixels it has read. The sum is in float, in channels_last
// order. With atomics the order of additions differs from run to run; `ordered` gives each image and group of channels
// to one warp, which adds row by row, so that results are the same bits every time.
#pragma once

#include "correlate.h"

namespace dk {

template <class T>
struct ScatterArguments {
  Sizes sizes;
  Offsets offsets;
  Pixels<const T> grad;
  Weight<T> weight;
  float* sum;  // (N, H, W, channels of grad)
  int taps_at_once;
};

// Grid: (tiles of 16 output positions, chunks of channels); ordered: (images, chunks), a block going through the tiles
// of its image.
template <class T, int kSteps, bool kOrdered>
DK_KERNEL void scatter(const ScatterArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int group = (device::block_y() * (device::threads() / kWarp) + id.warp) * kGroup;
  const int channel = group + id.t * kLaneChannels;
  const TileMemory m(a.taps_at_once, s.steps(), Traits<T>::kSplitHats);
  WeightFragments<T, kSteps> held;
  held.load_all(a.weight, s, id, group);
  const int plane = s.out_height * s.out_width;
  const int64_t begin = kOrdered ? device::block_x() * plane : device::block_x() * kRows;
  const int64_t end = kOrdered ? begin + plane : begin + 1;
  for (int64_t first = begin; first < end; first += kRows) {
    device::sync_block();
    place_rows(m, first, s.batch, s.out_height, s.out_width);
    float grad[2][kLaneChannels];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t position = first + id.g + 8 * i;
      const bool mine = position < (kOrdered ? end : int64_t(s.batch) * plane);
      a.grad.load(mine ? int(position) : -1, channel, grad[i]);
    }
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();
      prepare_sources<T, true, true>(m, s, a.offsets, tap, count);
      prepare_hats<T, true, true>(m, s, a.offsets, tap, count);
      device::sync_block();
      for (int slot = 0; slot < count; ++slot) {
        float sampled[2][kLaneChannels];
        sample_kernels(m, s, a.weight, id, group, held, slot, sampled);
        for (int turn = 0; turn < (kOrdered ? kRows : 1); ++turn) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int r = id.g + 8 * i;
            if ((kOrdered && turn != r) || first + r >= (kOrdered ? end : int64_t(s.batch) * plane)) continue;
            const Corners& corners = m.corners[slot * kRows + r];
            for (int j = 0; j < 4; ++j) {
              if (corners.pixel[j] < 0) continue;
              if (channel >= a.grad.channels) continue;
              float* to = a.sum + int64_t(corners.pixel[j]) * a.grad.channels + channel;
#pragma unroll
              for (int c = 0; c < kLaneChannels; ++c) {
                const float value = corners.value[j] * sampled[i][c] * grad[i][c];
                if (kOrdered)
                  to[c] += value;
                else
                  device::add_atomic(to + c, value);
              }
            }
          }
          if (kOrdered) device::sync_warp();
        }
      }
    }
  }
}

}  // namespace dk
