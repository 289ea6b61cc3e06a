// How work is laid on warps and tensor cores, and the loads and stores that follow from it.
//
// All channels of a position share the offsets. So the sampled kernels of one tap at 16 positions are a matrix product:
// hat coefficients (16 positions x scope samples) times the weight (scope samples x channels). It runs on the tensor
// core as m16n8k8 in TF32, which holds bfloat16 and float16 exactly; where its 10 bits of mantissa are too few, operands
// are split in two and the product in three.
//
// Who holds what (PTX, mma.m16n8k8; g = lane / 4, t = lane % 4):
//   A (16 x 8): a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8, t + 4)
//   B (8 x 8):  b0 (t, g), b1 (t + 4, g)
//   C (16 x 8): c0 (g, 2t), c1 (g, 2t + 1), c2 (g + 8, 2t), c3 (g + 8, 2t + 1)
// The order of samples and channels along a matrix is ours to choose. Channels: a warp takes 32 of them in 4 products
// such that column 2t and 2t + 1 of product j are channels 8t + 2j and 8t + 2j + 1; so a lane's results, and the pixels
// it multiplies them with, are 8 adjacent channels, one or two 16-byte loads. Samples: 4 rows of the scope at one column
// are a half step, in the slots t = 0..3 of a product's inner dimension; a product takes two. A scope of height Sh has
// ceil(Sh / 4) * Sw half steps, rows beyond Sh have weight zero. So every scope takes the same path.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "../axis.h"
#include "device.h"

namespace dk {

constexpr int kWarp = 32;
constexpr int kRows = 16;          // positions a tile has
constexpr int kLaneChannels = 8;   // adjacent channels a lane holds
constexpr int kGroup = 32;         // channels a warp holds in the layout above: 4 lanes times 8
constexpr int kProducts = 4;       // products of 8 columns that make up a group
constexpr int kFragment = 4;       // values of A a lane holds

// Which operands of a product are split: coefficients, weight, and products of two stored values. bfloat16 results have 8
// bits, so that TF32's 11 do for all of them.
template <class T>
struct Traits {
  static constexpr bool kSplitHats = true, kSplitWeight = false, kSplitProducts = true;
};
template <>
struct Traits<torch::headeronly::BFloat16> {
  static constexpr bool kSplitHats = false, kSplitWeight = false, kSplitProducts = false;
};
template <>
struct Traits<float> {
  static constexpr bool kSplitHats = true, kSplitWeight = true, kSplitProducts = true;
};

// The nearest value with 10 bits of mantissa, which is all that the tensor core reads, by Veltkamp's splitting: three
// instructions where the conversion takes more. Infinity, and what is beyond 2^114, becomes NaN; NaN stays.
DK_DEVICE float to_tf32(float value) {
  const float scaled = device::product(value, 8193.0f);
  return device::difference(scaled, device::difference(scaled, value));
}

// Division by a number fixed at launch, for numerators below 2^20 and divisors up to 2^11: a multiplication in place of
// twenty instructions.
struct Divisor {
  int value;
  uint32_t reciprocal;

  DK_DEVICE int quotient(int numerator) const {
    return value == 1 ? numerator : int(device::multiply_high(uint32_t(numerator), reciprocal));
  }
};

inline Divisor divisor(int64_t value) { return {int(value), uint32_t(((int64_t(1) << 32) + value - 1) / value)}; }

struct Sizes {
  int batch, channels, height, width, out_height, out_width;
  int scope_h, scope_w, kernel_h, kernel_w;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool clip;
  Divisor by_kernel_w, by_scope_w;

  DK_HOST_DEVICE int taps() const { return kernel_h * kernel_w; }
  DK_HOST_DEVICE int bands() const { return (scope_h + 3) / 4; }           // of 4 rows of the scope
  DK_HOST_DEVICE int half_steps() const { return bands() * scope_w; }
  DK_HOST_DEVICE int steps() const { return (half_steps() + 1) / 2; }
};

struct Lane {
  int warp, lane, g, t;

  DK_DEVICE Lane() : warp(device::thread() / kWarp), lane(device::thread() % kWarp), g(lane / 4), t(lane % 4) {}
};

// A value and what TF32 leaves of it.
struct Split {
  float high, low;

  explicit DK_DEVICE Split(float value) : high(to_tf32(value)), low(to_tf32(value - high)) {}
};

// Position `index` of a (batch, height, width) volume, row-major.
struct Position {
  int n, y, x;
};

DK_DEVICE Position position(int index, int height, int width) {
  const int row = index / width;
  return {row / height, row % height, index - row * width};
}

// What one load or store moves: 16 bytes, kept as words, because 16-bit values in registers cost shuffling.
struct __attribute__((may_alias)) __attribute__((aligned(16))) Packet {
  uint32_t word[4];
};

// Between packets and floats: 4 of float32 a packet, 8 of 16 bits.
template <class T>
struct Packed {
  static constexpr int kValues = 8;

  static DK_DEVICE void unpack(const Packet& packet, float* values) {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = static_cast<float>(T(static_cast<unsigned short>(packet.word[i / 2] >> (i % 2 * 16)), T::from_bits()));
  }
  static DK_DEVICE void pack(const float* values, Packet& packet) {
#pragma unroll
    for (int i = 0; i < 4; ++i) packet.word[i] = uint32_t(T(values[2 * i]).x) | uint32_t(T(values[2 * i + 1]).x) << 16;
  }
};
template <>
DK_DEVICE void Packed<torch::headeronly::BFloat16>::unpack(const Packet& packet, float* values) {
#pragma unroll
  for (int i = 0; i < kValues; ++i)  // the upper half of a float: one instruction
    values[i] = device::from_bits(i % 2 ? packet.word[i / 2] & 0xffff0000 : packet.word[i / 2] << 16);
}
template <>
struct Packed<float> {
  static constexpr int kValues = 4;

  static DK_DEVICE void unpack(const Packet& packet, float* values) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = device::from_bits(packet.word[i]);
  }
  static DK_DEVICE void pack(const float* values, Packet& packet) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) packet.word[i] = device::bits_of(values[i]);
  }
};

// Pixels of a channels_last tensor: channels side by side, pixels `channels` apart, a multiple of kLaneChannels. The
// driver pads what has another number.
template <class T>
struct Pixels {
  T* data;
  int channels;

  using Values = Packed<std::remove_const_t<T>>;
  static constexpr int kPackets = kLaneChannels / Values::kValues;

  DK_DEVICE T* at(int pixel, int channel) const { return data + int64_t(pixel) * channels + channel; }

  // kLaneChannels channels from `channel` on, zero where they are not there or the pixel is below 0.
  DK_DEVICE void load(int pixel, int channel, float (&values)[kLaneChannels]) const {
    Packet packets[kPackets] = {};
    if (pixel >= 0 && channel < channels) {
      const Packet* from = reinterpret_cast<const Packet*>(at(pixel, channel));
#pragma unroll
      for (int i = 0; i < kPackets; ++i) packets[i] = from[i];
    }
#pragma unroll
    for (int i = 0; i < kPackets; ++i) Values::unpack(packets[i], values + i * Values::kValues);
  }

  DK_DEVICE void store(int pixel, int channel, const float (&values)[kLaneChannels]) const {
    if (channel >= channels) return;
    Packet* to = reinterpret_cast<Packet*>(at(pixel, channel));
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      Packet packet;
      Values::pack(values + i * Values::kValues, packet);
      to[i] = packet;
    }
  }
};

// A weight (C, 1, Sh, Sw) of any strides.
template <class T>
struct Weight {
  const T* data;
  int64_t channel_stride, row_stride, column_stride;

  // The sample of row 4 * band + t at a column, for half step (band, column); zero where there is none.
  DK_DEVICE float at(const Sizes& s, int channel, int half, int t) const {
    if (channel >= s.channels || half >= s.half_steps()) return 0.0f;
    const int band = s.by_scope_w.quotient(half), row = band * 4 + t, column = half - band * s.scope_w;
    return row < s.scope_h ? static_cast<float>(data[channel * channel_stride + row * row_stride + column * column_stride])
                           : 0.0f;
  }
};

// d += a b, or d = a b where it is the `first`, in as many products as the operands have parts.
template <bool kSplitA, bool kSplitB>
DK_DEVICE void multiply(float (&d)[4], const float (&a)[2][4], const float (&b)[2][2], bool first = false) {
  first ? device::mma_first(d, a[0], b[0]) : device::mma(d, a[0], b[0]);
  if (kSplitA) device::mma(d, a[1], b[0]);
  if (kSplitB) device::mma(d, a[0], b[1]);
}

// d += a b in a sum of any length. The tensor core rounds every sum towards zero, by which float32 would drift; so there
// it makes the product alone, and the addition rounds to nearest.
template <class T>
DK_DEVICE void accumulate(float (&d)[4], const float (&a)[2][4], const float (&b)[2][2]) {
  if constexpr (std::is_same_v<T, float>) {
    float product[4];
    multiply<true, true>(product, a, b, true);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += product[i];
  } else {
    multiply<Traits<T>::kSplitProducts, Traits<T>::kSplitProducts>(d, a, b);
  }
}

}  // namespace dk
