// dL/dweight: coefficients (scope samples x positions) times gradient times pixel (positions x channels), summed over
// taps and positions. Every block sums its share of the tiles; a second kernel adds the shares in their order, so that
// results are the same bits every time. The cut does not depend on the device.
#pragma once

#include "cuda_taps.h"

namespace dk {

constexpr int kSamples = 16;      // rows of a product: scope samples, 4 half steps
constexpr int kWideProducts = 8;  // products a warp makes at a time: 64 channels, lane (g, t) loads 8 of them from 8 g
constexpr int kWideGroup = 64;
constexpr int kTileSteps = 2;  // of 8 positions; as many warps have the same channels and a step each
constexpr int kReduceWidth = 32, kReduceDepth = 8;  // a reducing block: channels, and shares summed side by side

template <class T>
struct WeightGradientArguments {
  Sizes sizes;
  Volume positions;
  Offsets offsets;
  Pixels<const T> input, grad;
  float* shares;  // (blocks along x, samples rounded up to 16, channels of input)
  Runs runs;      // of tiles
  int sample_tiles, taps_at_once;
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
DK_DEVICE void add_products(const LaneView<const T>& input, const LaneView<const T>& grads, const TileMemory& m,
                            int first, int step, int count, float (&sum)[kWideProducts][4]) {
  const Lane id;
  const int row = 8 * step + id.t;
  const Channels<T> grad[2] = {grads.load(first + row), grads.load(first + row + 4)};
#pragma unroll(kData || Traits<T>::kSplitProducts ? 1 : 3)
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

constexpr int kHalfSum = kWideProducts * kFragment / 2;

// Adds up what the warps of the two steps have summed, each for half of the samples: lane (g, t) gets those of sample
// g + 8 * step for channels 16 t on. Every warp of a block takes part.
DK_DEVICE void add_steps(const float (&sum)[kWideProducts][kFragment], int step, float (&total)[kHalfSum]) {
  const Lane id;
  float* memory = reinterpret_cast<float*>(device::shared_memory());
  float given[kHalfSum];
#pragma unroll
  for (int i = 0; i < kHalfSum; ++i) {
    const float (&of_channel)[kFragment] = sum[i % kWideProducts];
    const float first = of_channel[i / kWideProducts], second = of_channel[2 + i / kWideProducts];
    total[i] = step ? second : first, given[i] = step ? first : second;
  }
  device::sync_block();  // for what the memory held before
#pragma unroll
  for (int i = 0; i < kHalfSum; i += kFragment) {
    Packet packet;
    Packed<float>::pack(given + i, packet);
    store_packet(memory, (id.warp * kHalfSum + i) / kFragment, id.lane, packet);
  }
  device::sync_block();
#pragma unroll
  for (int i = 0; i < kHalfSum; i += kFragment) {
    float taken[kFragment];
    load_packet(memory, ((id.warp ^ 1) * kHalfSum + i) / kFragment, id.lane, taken);
#pragma unroll
    for (int k = 0; k < kFragment; ++k) total[i + k] += taken[k];
  }
}

// Grid: (shares, chunks of as many 64 channels as there are pairs of warps, times tiles of 16 scope samples).
template <class T, bool kData, bool kOneBand>
DK_KERNEL void DK_BOUNDS(kMostWarps, Traits<T>::kBlocks) weight_gradient(const WeightGradientArguments<T> a) {
  const Lane id;
  const Sizes& s = a.sizes;
  const int chunk = device::block_y() / a.sample_tiles, sample_tile = device::block_y() % a.sample_tiles;
  const int pairs = device::threads() / (kTileSteps * kWarp), step = id.warp % kTileSteps;
  const int group = (chunk * pairs + id.warp / kTileSteps) * kWideGroup;
  const LaneView<const T> input(a.input, group + id.g * kLaneChannels), grad(a.grad, group + id.g * kLaneChannels);
  const TileMemory m(a.taps_at_once, kTileSteps, Traits<T>::kSplitProducts);
  float sum[kWideProducts][kFragment] = {};
  for (int tile = a.runs.begin(); tile < a.runs.end(); ++tile)
    for (int tap = 0; tap < s.taps(); tap += a.taps_at_once) {
      const int count = s.taps() - tap < a.taps_at_once ? s.taps() - tap : a.taps_at_once;
      device::sync_block();  // for what the memory held before
      prepare_points<T, kData, true>(m, s, a.positions, a.offsets, tile * kRows, tap, count);
      device::sync_block();
      prepare_transposed_hats<Traits<T>::kSplitProducts, kOneBand>(m, s, sample_tile, count);
      device::sync_block();
      add_products<T, kData>(input, grad, m, tile * kRows, step, count, sum);
    }
  float total[kHalfSum];
  add_steps(sum, step, total);
  const int64_t sample = (device::block_x() * a.sample_tiles + sample_tile) * kSamples + id.g + 8 * step;
  const int channel = group + kHalfSum * id.t;
  float* to = a.shares + sample * a.input.channels + channel;
#pragma unroll
  for (int i = 0; i < kHalfSum; i += kLaneChannels)
    if (channel + i < a.input.channels) store_channels(to + i, total + i);
}

template <class T>
struct ReduceArguments {
  Sizes sizes;
  const float* shares;
  int64_t count;  // of shares
  int channels;   // of a share
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
      sum += a.shares[(share * samples + sample) * a.channels + channel];
  float* sums = reinterpret_cast<float*>(device::shared_memory());
  sums[device::thread()] = sum;
  device::sync_block();
  if (depth > 0 || channel >= s.channels) return;
  for (int d = 1; d < kReduceDepth; ++d) sum += sums[d * kReduceWidth + i];
  a.result[(int64_t(channel) * s.scope_h + row) * s.scope_w + column] = static_cast<T>(sum);
}

}  // namespace dk
