// Copies between tensors whose planes lie one after the other, as contiguous ones have it, and channels_last memory, by
// tiles in shared memory: both sides move whole sectors, where a copy by strides moves a value a sector on one of them.
#pragma once

#include "../common/cuda_device.h"

namespace dk {

constexpr int kTransposeTile = 32, kTransposeRows = 8;  // channels and pixels of a tile; of them at once, a warp each

// Element (n, c, p) of the one side is planes[n * image + c * plane + p], of the other pixels[(n * count + p) *
// channels + c]. The other may have more channels; towards it they are made zero.
template <class From, class To>
struct TransposeArguments {
  const From* from;
  To* to;
  int64_t count, image, plane, channels, padded;
  int64_t pixel_tiles, channel_tiles;
};

template <class From, class To, bool kToPixels>
DK_KERNEL void transpose(const TransposeArguments<From, To> a) {
  constexpr int kPitch = kTransposeTile + 4 / int(sizeof(To));  // so that columns lie in different banks
  To* tile = reinterpret_cast<To*>(device::shared_memory());
  const int thread = device::thread(), column = thread % kTransposeTile, warp = thread / kTransposeTile;
  const int64_t n = device::block_x() / (a.pixel_tiles * a.channel_tiles);
  const int64_t p0 = device::block_x() / a.channel_tiles % a.pixel_tiles * kTransposeTile;
  const int64_t c0 = device::block_x() % a.channel_tiles * kTransposeTile;
  for (int row = warp; row < kTransposeTile; row += kTransposeRows) {
    const int64_t c = c0 + (kToPixels ? row : column), p = p0 + (kToPixels ? column : row);
    const bool there = c < a.channels && p < a.count;
    const int64_t i = kToPixels ? n * a.image + c * a.plane + p : (n * a.count + p) * a.padded + c;
    tile[row * kPitch + column] = there ? static_cast<To>(a.from[i]) : static_cast<To>(0.0f);
  }
  device::sync_block();
  for (int row = warp; row < kTransposeTile; row += kTransposeRows) {
    const int64_t c = c0 + (kToPixels ? column : row), p = p0 + (kToPixels ? row : column);
    const int64_t i = kToPixels ? (n * a.count + p) * a.padded + c : n * a.image + c * a.plane + p;
    if (c < (kToPixels ? a.padded : a.channels) && p < a.count) a.to[i] = tile[column * kPitch + row];
  }
}

// Whether the pixels of a channel lie one after the other.
inline bool has_planes(const Tensor& t) {
  return (t.size(3) == 1 || t.stride(3) == 1) && (t.size(2) == 1 || t.stride(2) == t.size(3));
}

// From a tensor with planes to a dense channels_last one with as many or more channels, or the other way round.
template <class From, class To, bool kToPixels>
void transpose(const Tensor& from, const Tensor& to, void* stream) {
  const Tensor &planes = kToPixels ? from : to, &pixels = kToPixels ? to : from;
  const auto tiles = [](int64_t size) { return (size + kTransposeTile - 1) / kTransposeTile; };
  TransposeArguments<From, To> a{static_cast<const From*>(from.data_ptr()),
                                 static_cast<To*>(to.data_ptr()),
                                 planes.size(2) * planes.size(3),
                                 planes.stride(0),
                                 planes.stride(1),
                                 planes.size(1),
                                 pixels.size(1),
                                 0,
                                 0};
  a.pixel_tiles = tiles(a.count), a.channel_tiles = tiles(kToPixels ? a.padded : a.channels);
  launch("transpose", transpose<From, To, kToPixels>, planes.size(0) * a.pixel_tiles * a.channel_tiles, 1,
         kTransposeTile * kTransposeRows, kTransposeTile * (kTransposeTile + 4 / sizeof(To)) * sizeof(To), stream, a);
}

}  // namespace dk
