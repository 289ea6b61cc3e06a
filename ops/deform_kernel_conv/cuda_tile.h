// How work is laid on warps and tensor cores, and the loads and stores that follow from it.
//
// All channels of a position share the offsets. So the sampled kernels of one tap at 16 positions are a matrix product:
// hat coefficients (16 positions x scope samples) times the weight (scope samples x channels). It runs on the tensor
// core as m16n8k8 in TF32, which holds bfloat16 and float16 exactly; where its 10 bits of mantissa are too few,
// operands are split in two and the product in three. With a stored float16 weight it is m16n8k16, of coefficients in
// two halves.
//
// Who holds what (PTX, mma.m16n8k8; g = lane / 4, t = lane % 4):
//   A (16 x 8): a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8, t + 4)
//   B (8 x 8):  b0 (t, g), b1 (t + 4, g)
//   C (16 x 8): c0 (g, 2t), c1 (g, 2t + 1), c2 (g + 8, 2t), c3 (g + 8, 2t + 1)
// and in mma.m16n8k16, two values a word:
//   A (16 x 16): a0 (g, 2t and 2t + 1), a1 (g + 8, the same), a2 (g, 2t + 8 and 2t + 9), a3 (g + 8, the same)
//   B (16 x 8):  b0 (2t and 2t + 1, g), b1 (2t + 8 and 2t + 9, g)
// The order of samples and channels along a matrix is ours to choose. Channels: a group of 32 are 4 products such that
// column 2t and 2t + 1 of product j are channels 8t + 2j and 8t + 2j + 1; so a lane's results, and the pixels it
// multiplies them with, are 8 adjacent channels, one or two 16-byte loads. Samples: 4 rows of the scope at one column
// are a half step, lane t having row t of A and of B; a product of TF32 takes two, of 16 bits four. A scope of height
// Sh has ceil(Sh / 4) * Sw half steps, rows beyond Sh have weight zero. So every scope takes the same path.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "axis.h"
#include "../common/cuda_device.h"

namespace dk {

constexpr int kWarp = 32;
constexpr int kRows = 16;         // positions a tile has
constexpr int kLaneChannels = 8;  // adjacent channels a lane holds
constexpr int kGroup = 32;        // channels a warp holds in the layout above: 4 lanes times 8
constexpr int kProducts = 4;      // products of 8 columns that make up a group
constexpr int kFragment = 4;      // values of A a lane holds
constexpr int kMostWarps = 8;     // of a block

// Which operands of a product are split: coefficients, weight, and products of two stored values. bfloat16 results have
// 8 bits, so that TF32's 11 do for all of them. kHalfSteps: that a product of coefficients and weight takes. kGroups:
// of 32 channels that a warp takes for every coefficient it loads, also in the kernel offsets' gradient. kBlocks: how
// many a multiprocessor shall hold of the kernels that need most registers.
template <class T>
struct Traits {
  static constexpr bool kSplitHats = true, kSplitWeight = false, kSplitProducts = true;
  static constexpr int kHalfSteps = 4, kGroups = 2, kOffsetGroups = 1, kBlocks = 2;
};
template <>
struct Traits<torch::headeronly::BFloat16> {
  static constexpr bool kSplitHats = false, kSplitWeight = false, kSplitProducts = false;
  static constexpr int kHalfSteps = 2, kGroups = 2, kOffsetGroups = 2, kBlocks = 2;
};
template <>
struct Traits<float> {
  static constexpr bool kSplitHats = true, kSplitWeight = true, kSplitProducts = true;
  static constexpr int kHalfSteps = 2, kGroups = 1, kOffsetGroups = 1, kBlocks = 1;
};

// The nearest value with 10 bits of mantissa, which is all that the tensor core reads. sm_90 has an instruction for it;
// before, Veltkamp's splitting takes fewer than the conversion. By it infinity, and what is beyond 2^114, becomes NaN.
DK_DEVICE float to_tf32(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return device::nearest_tf32(value);
#else
  const float scaled = device::product(value, 8193.0f);
  return device::difference(scaled, device::difference(scaled, value));
#endif
}

// Division of what is not negative by a number fixed at launch: three instructions in place of twenty. With s the
// number's logarithm rounded up, and m = ceil(2^(31 + s) / number), quotients are n m / 2^(31 + s) rounded down
// (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t multiplier;
  int shift;

  DK_DEVICE int quotient(int numerator) const {
    return int(device::multiply_high(uint32_t(numerator) << 1, multiplier) >> shift);
  }
};

inline Divisor divisor(int64_t value) {
  int shift = 0;
  while ((int64_t(1) << shift) < value) ++shift;
  return {uint32_t(((uint64_t(1) << (31 + shift)) + value - 1) / value), shift};
}

// Position `index` of a (batch, height, width) volume, row-major.
struct Position {
  int n, y, x;
};

struct Volume {
  int count, height, width;
  Divisor by_height, by_width;

  DK_DEVICE Position at(int index) const {
    const int row = by_width.quotient(index), n = by_height.quotient(row);
    return {n, row - n * height, index - row * width};
  }
};

// Tiles in runs as equal as can be, one for every block of a kernel.
struct Runs {
  int each, longer;  // tiles of a run, and how many runs have one more

  DK_DEVICE int first(int run) const { return run * each + (run < longer ? run : longer); }
  DK_DEVICE int begin() const { return first(int(device::block_x())); }
  DK_DEVICE int end() const { return first(int(device::block_x()) + 1); }
};

inline Runs runs_of(int64_t tiles, int64_t count) { return {int(tiles / count), int(tiles % count)}; }

struct Sizes {
  int batch, channels, height, width, out_height, out_width;
  int scope_h, scope_w, kernel_h, kernel_w;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  float origin_y, origin_x, edge_y, edge_x;  // of the scope: where tap (0, 0) samples it, and its last sample
  bool clip;
  Divisor by_kernel_w, by_scope_w;

  DK_HOST_DEVICE int taps() const { return kernel_h * kernel_w; }
  DK_HOST_DEVICE int bands() const { return (scope_h + 3) / 4; }  // of 4 rows of the scope
  DK_HOST_DEVICE int half_steps() const { return bands() * scope_w; }
  DK_HOST_DEVICE int steps(int half) const { return (half_steps() + half - 1) / half; }  // of so many half steps
};

// Calls f with the constants 0 .. kCount - 1.
template <int kCount, class F>
DK_DEVICE void unrolled(const F& f) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(f);
    f(std::integral_constant<int, kCount - 1>());
  }
}

struct Lane {
  int warp, lane, g, t;

  // By bits, because the compiler does not know that a thread's number is not negative.
  DK_DEVICE Lane() : warp(device::thread() >> 5), lane(device::thread() & 31), g(lane >> 2), t(lane & 3) {}
};

// A value and what TF32 leaves of it.
struct Split {
  float high, low;

  // PTX does not say what the bits beyond TF32's are after a conversion.
  explicit DK_DEVICE Split(float value) : high(to_tf32(value)), low(to_tf32(value - device::truncated(high))) {}
};

// A stored value in as many parts as it needs: of 16 bits TF32 takes nothing off.
template <class T>
DK_DEVICE void split_stored(float value, float& high, float& low) {
  if constexpr (Traits<T>::kSplitWeight) {
    const Split split(value);
    high = split.high, low = split.low;
  } else {
    high = value, low = 0;
  }
}

// Two 16-bit values a word.
template <class T>
DK_DEVICE uint32_t pair_of(T first, T second) {
  return uint32_t(first.x) | uint32_t(second.x) << 16;
}

// What one load or store moves: 16 bytes, kept as words, because 16-bit values in registers cost shuffling.
struct __attribute__((may_alias)) __attribute__((aligned(16))) Packet {
  uint32_t word[4];
};

// Between words and floats: 4 of float32 a packet, 8 of 16 bits.
template <class T>
struct Packed {
  static constexpr int kValues = 8;

  static DK_DEVICE float value(const uint32_t* word, int i) {
    return static_cast<float>(T(static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16)), T::from_bits()));
  }
  static DK_DEVICE void pack(const float* values, Packet& packet) {
#pragma unroll
    for (int i = 0; i < 4; ++i) packet.word[i] = pair_of(T(values[2 * i]), T(values[2 * i + 1]));
  }
};
template <>
DK_DEVICE float Packed<torch::headeronly::BFloat16>::value(const uint32_t* word, int i) {
  // The upper half of a float: one instruction.
  return device::from_bits(i % 2 ? word[i / 2] & 0xffff0000 : word[i / 2] << 16);
}
template <>
struct Packed<float> {
  static constexpr int kValues = 4;

  static DK_DEVICE float value(const uint32_t* word, int i) { return device::from_bits(word[i]); }
  static DK_DEVICE void pack(const float* values, Packet& packet) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) packet.word[i] = device::bits_of(values[i]);
  }
};

// kLaneChannels adjacent channels of a pixel as they are stored.
template <class T>
struct Channels {
  using Values = Packed<T>;
  static constexpr int kPackets = kLaneChannels / Values::kValues;

  Packet packets[kPackets];

  DK_DEVICE float operator[](int c) const {
    return Values::value(packets[c / Values::kValues].word, c % Values::kValues);
  }
};

// A channels_last tensor. Its channels are a multiple of kLaneChannels; the driver pads what has another number.
template <class T>
struct Pixels {
  T* data;
  int channels;
  uint32_t count, stride;  // of pixels, and the bytes from one to the next
};

// Stores kLaneChannels values side by side, 16 bytes at a time.
template <class T>
DK_DEVICE void store_channels(T* to, const float* values) {
#pragma unroll
  for (int i = 0; i < Channels<T>::kPackets; ++i) {
    Packet packet;
    Packed<T>::pack(values + i * Packed<T>::kValues, packet);
    reinterpret_cast<Packet*>(to)[i] = packet;
  }
}

// What one lane reads and writes of a tensor's pixels: kLaneChannels channels from `channel` on, and as many in each of
// the groups that follow.
template <class T, int kGroups = 1>
struct LaneView {
  using Stored = std::remove_const_t<T>;
  static constexpr int kPackets = Channels<Stored>::kPackets;

  T* first;                 // of pixel 0
  uint32_t count[kGroups];  // pixels, none if the tensor has not got these channels
  uint32_t stride;

  DK_DEVICE LaneView(const Pixels<T>& pixels, int channel) : first(pixels.data + channel), stride(pixels.stride) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) count[i] = channel + i * kGroup < pixels.channels ? pixels.count : 0;
  }

  // Zero where there is nothing, as for a pixel of -1.
  template <int kSkip = 0>
  DK_DEVICE Channels<Stored> load(int pixel) const {
    constexpr int kBytes = kSkip * kGroup * int(sizeof(T));
    Channels<Stored> loaded;
    device::load<kBytes>(loaded.packets[0].word, first, uint32_t(pixel), count[kSkip], stride);
    if constexpr (kPackets > 1)
      device::load<kBytes + 16>(loaded.packets[1].word, first, uint32_t(pixel), count[kSkip], stride);
    return loaded;
  }

  template <int kSkip = 0>
  DK_DEVICE void store(int pixel, const float (&values)[kLaneChannels]) const {
    if (uint32_t(pixel) >= count[kSkip]) return;
    char* to = reinterpret_cast<char*>(first + kSkip * kGroup) + uint64_t(uint32_t(pixel)) * stride;
    store_channels(reinterpret_cast<T*>(to), values);
  }
};

// The place of half step `half` in the scope: a band of 4 rows and a column.
struct HalfStep {
  int band, column;
};

// `kOneBand`: the scope has no more than 4 rows.
template <bool kOneBand>
DK_DEVICE HalfStep half_step(const Sizes& s, int half) {
  if (kOneBand) return {0, half};
  const int band = s.by_scope_w.quotient(half);
  return {band, half - band * s.scope_w};
}

// A weight (C, 1, Sh, Sw) of any strides. `packed`: (C, 1, 4, 4) without gaps, aligned to 16 bytes, C a multiple of 8,
// so that neighbours in a row are loaded at once.
template <class T>
struct Weight {
  const T* data;
  int channel_stride, row_stride, column_stride;
  bool packed;

  // Row t of a column, in a band of 4 rows; zero where there is none. Without a branch, so that many loads are under
  // way.
  DK_DEVICE T at(const Sizes& s, int channel, HalfStep half, int t) const {
    const int row = half.band * 4 + t;
    const bool there = channel < s.channels && row < s.scope_h && half.column < s.scope_w;
    const T value = data[there ? channel * channel_stride + row * row_stride + half.column * column_stride : 0];
    return there ? value : T(0.0f);
  }

  // Of a packed weight: what lies from sample `first` of channel `channel` + kSkip on, zero where there is no
  // `channel`.
  template <int kSkip, int kWords>
  DK_DEVICE void load(uint32_t (&words)[kWords], const Sizes& s, int channel, int first) const {
    constexpr int kBytes = 16 * sizeof(T);  // of a channel
    device::load<kSkip * kBytes>(words, data + first, uint32_t(channel), uint32_t(s.channels), kBytes);
  }
};

// d += a b, or d = a b where it is the `first`, of what splitting has taken off the operands.
template <bool kSplitA, bool kSplitB>
DK_DEVICE void multiply_rest(float (&d)[4], const float (&a)[2][4], const float (&b)[2][2], bool first = false) {
  if (kSplitA) first ? device::mma_first(d, a[1], b[0]) : device::mma(d, a[1], b[0]);
  if (kSplitB) first && !kSplitA ? device::mma_first(d, a[0], b[1]) : device::mma(d, a[0], b[1]);
}

// d += a b in as many products as the operands have parts; the rest first, because the tensor core rounds every sum.
template <bool kSplitA, bool kSplitB>
DK_DEVICE void multiply(float (&d)[4], const float (&a)[2][4], const float (&b)[2][2], bool first = false) {
  multiply_rest<kSplitA, kSplitB>(d, a, b, first);
  first && !kSplitA && !kSplitB ? device::mma_first(d, a[0], b[0]) : device::mma(d, a[0], b[0]);
}

// d += a b in a sum of any length. The tensor core rounds every sum towards zero, by which it would drift; so where
// that shows beside a result's own rounding, it makes the product alone, and the addition rounds to nearest.
template <class T>
DK_DEVICE void accumulate(float (&d)[4], const float (&a)[2][4], const float (&b)[2][2]) {
  constexpr bool kSplit = Traits<T>::kSplitProducts;
  if constexpr (kSplit) {
    float product[4];
    multiply<kSplit, kSplit>(product, a, b, true);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += product[i];
  } else {
    multiply<kSplit, kSplit>(d, a, b);
  }
}

}  // namespace dk
