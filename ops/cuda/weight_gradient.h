// dL/dweight: coefficients (scope samples x positions) times gradient times pixel (positions x channels), summed over
// taps and positions. Every block sums its share of the tiles; a second kernel adds the shares in their order, so that
// results are the same bits every time. The cut does not depend on the device.
#pragma once

#include "taps.h"

namespace dk {

constexpr int kSamples = 16;        // rows of a product: scope samples, 4 half steps
constexpr int kWideProducts = 8;    // products a warp makes at a time: 64 channels, lane (g, t) loads 8 of them from 8 g
constexpr int kWideGroup = 64;
constexpr int kTileSteps = 2;       // of 8 positions
constexpr int kReduceWidth = 32, kReduceDepth = 8;  // a reducing block: channels, and shares summed side by side

template <class T>
struct WeightGradientArguments {
  Sizes sizes;
  Offsets offsets;
  Pixels<const T> input, grad;
  float* shares;  // (blocks along x, samples rounded up to 16, C)
  int64_t tiles;
  int sample_tiles, taps_at_once;
};

DK_HOST_DEVICE inline int sample_tiles(const Sizes& s) { return (4 * s.half_steps() + kSamples - 1) / kSamples; }

// The coefficients as A of the products: 16 scope samples from half step 4 * `tile` on x 8 positions.
template <class T, bool kData>
DK_DEVICE void prepare_transposed_hats(const TileMemory& m, const Sizes& s, const Offsets& offsets, int tile, int first,
                                       int count) {
  const Lane id;
  for (int slot = id.warp; slot < count; slot += device::threads() / kWarp)
    for (int step = 0; step < kTileSteps; ++step) {
      const Position* rows = m.rows + 8 * step + id.t;
      const Sampling points[2] = {sampling<T, kData, true>(s, offsets, rows[0], first + slot),
                                  sampling<T, kData, true>(s, offsets, rows[4], first + slot)};
      float values[kFragment];
#pragma unroll
      for (int k = 0; k < kFragment; ++k) {
        const int sample = id.g + 8 * (k % 2);
        values[k] = points[k / 2].at(s, 4 * tile + sample / 4, sample % 4);
      }
      store_fragment(m, slot, step, id.lane, values);
    }
}

// Grid: (shares, chunks of as many 64 channels as there are warps, times tiles of 16 scope samples).
template <class T, bool kData>
DK_KERNEL void weight_gradient(const WeightGradientArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int chunk = device::block_y() / a.sample_tiles, sample_tile = device::block_y() % a.sample_tiles;
  const int group = (chunk * (device::threads() / kWarp) + id.warp) * kWideGroup;
  const int channel = group + id.g * kLaneChannels;
  const TileMemory m(a.taps_at_once, kTileSteps, Traits<T>::kSplitProducts);
  float sum[kWideProducts][4] = {};
  for (int64_t tile = device::block_x(); tile < a.tiles; tile += device::blocks_x()) {
    device::sync_block();
    place_rows(m, tile * kRows, s.batch, s.out_height, s.out_width);
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();
      prepare_sources<T, kData, true>(m, s, a.offsets, tap, count);
      prepare_transposed_hats<T, kData>(m, s, a.offsets, sample_tile, tap, count);
      device::sync_block();
#pragma unroll
      for (int step = 0; step < kTileSteps; ++step) {
        float grad[2][kLaneChannels];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int r = 8 * step + id.t + 4 * i;
          a.grad.load(m.rows[r].n < s.batch ? int(tile * kRows) + r : -1, channel, grad[i]);
        }
        for (int slot = 0; slot < count; ++slot) {
          float pixels[2][kLaneChannels], hats[2][kFragment];
#pragma unroll
          for (int i = 0; i < 2; ++i) read_source<kData>(m, a.input, slot, 8 * step + id.t + 4 * i, channel, pixels[i]);
#pragma unroll
          for (int part = 0; part < (Traits<T>::kSplitProducts ? 2 : 1); ++part)
#pragma unroll
            for (int k = 0; k < kFragment; ++k) hats[part][k] = m.fragment(slot, step, part, id.lane)[k];
#pragma unroll
          for (int j = 0; j < kWideProducts; ++j) {
            const Split first(grad[0][j] * pixels[0][j]), second(grad[1][j] * pixels[1][j]);
            const float u[2][2] = {{first.high, second.high}, {first.low, second.low}};
            accumulate<T>(sum[j], hats, u);
          }
        }
      }
    }
  }
  // Lane (g, t) holds samples g and g + 8 of channels 8 * 2t + j and 8 * (2t + 1) + j.
  const int64_t samples = int64_t(a.sample_tiles) * kSamples;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t sample = sample_tile * kSamples + id.g + 8 * (k / 2);
    float* to = a.shares + (device::block_x() * samples + sample) * s.channels;
#pragma unroll
    for (int j = 0; j < kWideProducts; ++j) {
      const int c = group + kLaneChannels * (2 * id.t + k % 2) + j;
      if (c < s.channels) to[c] = sum[j][k];
    }
  }
}

template <class T>
struct ReduceArguments {
  Sizes sizes;
  const float* shares;
  int64_t count;  // of shares
  int sample_tiles;
  T* result;  // (C, 1, Sh, Sw), contiguous
};

// Grid: (32 channels, scope samples). Thread (i, d) adds shares d, d + 8, ...; then the 8 sums are added in order.
template <class T>
DK_KERNEL void reduce_weight_gradient(const ReduceArguments<T> a) {
  const Sizes& s = a.sizes;
  const int i = device::thread() % kReduceWidth, depth = device::thread() / kReduceWidth;
  const int channel = int(device::block_x()) * kReduceWidth + i, row = device::block_y() / s.scope_w;
  const int column = device::block_y() % s.scope_w;
  const int64_t samples = int64_t(a.sample_tiles) * kSamples;
  const int64_t sample = (int64_t(row / 4) * s.scope_w + column) * 4 + row % 4;
  float sum = 0;
  if (channel < s.channels)
    for (int64_t share = depth; share < a.count; share += kReduceDepth)
      sum += a.shares[(share * samples + sample) * s.channels + channel];
  float* sums = reinterpret_cast<float*>(device::shared_memory());
  sums[device::thread()] = sum;
  device::sync_block();
  if (depth > 0 || channel >= s.channels) return;
  for (int d = 1; d < kReduceDepth; ++d) sum += sums[d * kReduceWidth + i];
  a.result[(int64_t(channel) * s.scope_h + row) * s.scope_w + column] = static_cast<T>(sum);
}

}  // namespace dk
