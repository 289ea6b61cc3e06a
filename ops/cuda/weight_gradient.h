// dL/dweight: coefficients (scope samples x positions) times gradient times pixel (positions x channels), summed over
// taps and positions. Every block sums its share of the tiles; a second kernel adds the shares in their order, so that
// results are the same bits every time. The cut does not depend on the device.
#pragma once

#include "taps.h"

namespace dk {

constexpr int kSamples = 16;        // rows of a product: scope samples, 4 half steps
constexpr int kWideProducts = 8;    // products a warp makes at a time: 64 channels, lane (g, t) loads 8 of them from 8 g
constexpr int kWideGroup = 64;
constexpr int kMostWideWarps = 4;
constexpr int kTileSteps = 2;       // of 8 positions
constexpr int kReduceWidth = 32, kReduceDepth = 8;  // a reducing block: channels, and shares summed side by side

template <class T>
struct WeightGradientArguments {
  Sizes sizes;
  Volume positions;
  Offsets offsets;
  Pixels<const T> input, grad;
  float* shares;  // (blocks along x, samples rounded up to 16, C)
  int tiles, tiles_per_block, sample_tiles, taps_at_once;
};

DK_HOST_DEVICE inline int sample_tiles(const Sizes& s) { return (4 * s.half_steps() + kSamples - 1) / kSamples; }

// The coefficients as A of the products: 16 scope samples from half step 4 * `tile` on x 8 positions.
template <bool kSplit, bool kOneBand>
DK_DEVICE void prepare_transposed_hats(const TileMemory& m, const Sizes& s, int tile, int count) {
  const Lane id;
  for (unsigned i = id.warp; i < unsigned(count * kTileSteps); i += device::threads() / kWarp) {
    const HatPoint* rows = m.points + i * (kRows / kTileSteps) + id.t;
    const HatPoint points[2] = {rows[0], rows[4]};
    float values[kFragment];
#pragma unroll
    for (int k = 0; k < kFragment; ++k) {
      const HalfStep half = half_step<kOneBand>(s, 4 * tile + id.g / 4 + k % 2 * 2);
      const HatPoint& p = points[k / 2];
      values[k] = hat(p.y, half.band * 4 + id.g % 4) * hat(p.x, half.column) + p.nan;
    }
    store_parts<kSplit>(m.hats, i, id.lane, values);
  }
}

// One step of all taps at hand: 8 positions from row 8 * step of the tile on.
template <class T, bool kData>
DK_DEVICE void add_products(const LaneView<const T>& input, const LaneView<const T>& grads, const TileMemory& m, int first,
                            int step, int count, float (&sum)[kWideProducts][4]) {
  const Lane id;
  const int row = 8 * step + id.t;
  const Channels<T> grad[2] = {grads.load(first + row), grads.load(first + row + 4)};
#pragma unroll (kData || Traits<T>::kSplitProducts ? 1 : 3)
  for (int slot = 0; slot < count; ++slot) {
    const auto read = read_source<kData, 4>(m, input, slot, row);
    float hats[2][kFragment];
    load_parts<Traits<T>::kSplitProducts>(m.hats, slot * kTileSteps + step, id.lane, hats);
#pragma unroll
    for (int j = 0; j < kWideProducts; ++j) {
      const Split first(grad[0][j] * read.at(0, j)), second(grad[1][j] * read.at(1, j));
      const float u[2][2] = {{first.high, second.high}, {first.low, second.low}};
      accumulate<T>(sum[j], hats, u);
    }
  }
}

// Grid: (shares, chunks of as many 64 channels as there are warps, times tiles of 16 scope samples).
template <class T, bool kData, bool kOneBand>
DK_KERNEL void DK_BOUNDS(kMostWideWarps, 2 * Traits<T>::kBlocks) weight_gradient(const WeightGradientArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int chunk = device::block_y() / a.sample_tiles, sample_tile = device::block_y() % a.sample_tiles;
  const int group = (chunk * (device::threads() / kWarp) + id.warp) * kWideGroup;
  const LaneView<const T> input(a.input, group + id.g * kLaneChannels), grad(a.grad, group + id.g * kLaneChannels);
  const TileMemory m(a.taps_at_once, kTileSteps, Traits<T>::kSplitProducts);
  float sum[kWideProducts][4] = {};
  const int begin = int(device::block_x()) * a.tiles_per_block;
  const int end = begin + a.tiles_per_block < a.tiles ? begin + a.tiles_per_block : a.tiles;
  for (int tile = begin; tile < end; ++tile)
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();  // for what the memory held before
      prepare_points<T, kData, true>(m, s, a.positions, a.offsets, tile * kRows, tap, count);
      device::sync_block();
      prepare_transposed_hats<Traits<T>::kSplitProducts, kOneBand>(m, s, sample_tile, count);
      device::sync_block();
#pragma unroll 1
      for (int step = 0; step < kTileSteps; ++step)
        add_products<T, kData>(input, grad, m, tile * kRows, step, count, sum);
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
