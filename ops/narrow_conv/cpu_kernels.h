// The kernels of cpu_narrow.h for one instruction set (see cpu_vectors.h).
#include "../common/cpu_vectors.h"
#include "cpu_narrow.h"

namespace dk {
namespace DK_ISA {

typedef VectorOf<float>::type NarrowVector;
constexpr int64_t kNarrowLanes = sizeof(NarrowVector) / sizeof(float);
// Positions whose sums are taken at once: with kNarrowOutputs, what the registers hold.
constexpr int64_t kNarrowPositions = DK_BYTES == 64 ? 4 : 2;

template <class V>
static inline float sum_narrow(V v) {
  if constexpr (sizeof(V) == 16)
    return (v[0] + v[2]) + (v[1] + v[3]);
  else
    return sum_narrow(fold(v));
}

// P positions from `at` on, the outputs of one block.
template <int P>
static inline void narrow_positions(const Narrow& n, int64_t at, int64_t block) {
  const Geometry& g = *n.g;
  const int64_t vectors = g.channels / kNarrowLanes, step = kNarrowOutputs * kNarrowLanes;
  NarrowVector sum[P][kNarrowOutputs] = {};
  const float* weight = n.weight + block * g.taps() * vectors * step;
  for (int64_t i = 0; i < g.kernel_h; ++i)
    for (int64_t j = 0; j < g.kernel_w; ++j, weight += vectors * step) {
      const float* x[P];
      bool any = false;
      for (int p = 0; p < P; ++p) {
        const int64_t y = (at + p) / g.out_width * g.stride_h - g.pad_h + i * g.dilation_h;
        const int64_t w = (at + p) % g.out_width * g.stride_w - g.pad_w + j * g.dilation_w;
        const bool inside = y >= 0 && y < g.height && w >= 0 && w < g.width;
        x[p] = inside ? n.x + (y * g.width + w) * n.x_step : n.zeros;
        any |= inside;
      }
      if (!any) continue;
      for (int64_t v = 0; v < vectors; ++v) {
        NarrowVector read[P];
        for (int p = 0; p < P; ++p) read[p] = load<NarrowVector>(x[p] + v * kNarrowLanes);
#pragma GCC unroll 8
        for (int o = 0; o < kNarrowOutputs; ++o) {
          const NarrowVector factor = load<NarrowVector>(weight + v * step + o * kNarrowLanes);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) sum[p][o] += read[p] * factor;
        }
      }
    }
  const int64_t first = block * kNarrowOutputs;
  const int64_t outputs = n.outputs - first < kNarrowOutputs ? n.outputs - first : kNarrowOutputs;
  for (int p = 0; p < P; ++p) {
    float total[kNarrowOutputs];
#pragma GCC unroll 8
    for (int o = 0; o < kNarrowOutputs; ++o) total[o] = sum_narrow(sum[p][o]) + n.bias[first + o];
    for (int64_t o = 0; o < outputs; ++o) n.out[(at + p) * n.out_step + first + o] = total[o];
  }
}

static void narrow_forward(const Narrow& n) {
  const int64_t blocks = (n.outputs + kNarrowOutputs - 1) / kNarrowOutputs;
  int64_t at = n.begin;
  for (; at + kNarrowPositions <= n.end; at += kNarrowPositions)
    for (int64_t block = 0; block < blocks; ++block) narrow_positions<kNarrowPositions>(n, at, block);
  for (; at < n.end; ++at)
    for (int64_t block = 0; block < blocks; ++block) narrow_positions<1>(n, at, block);
}

// O outputs from `first` on, of one tap and one vector of channels, over all positions of the image.
template <int O>
static inline void narrow_tap_gradient(const Narrow& n, int64_t i, int64_t j, int64_t first, int64_t channel) {
  const Geometry& g = *n.g;
  float* to = n.grad_weight + ((i * g.kernel_w + j) * n.outputs + first) * kNarrowChannels + channel;
  NarrowVector sum[O];
  for (int o = 0; o < O; ++o) sum[o] = load<NarrowVector>(to + o * kNarrowChannels);
  for (int64_t h = 0; h < g.out_height; ++h) {
    const int64_t y = h * g.stride_h - g.pad_h + i * g.dilation_h, x0 = j * g.dilation_w - g.pad_w;
    if (y < 0 || y >= g.height) continue;
    for (int64_t w = 0; w < g.out_width; ++w) {
      const int64_t at = x0 + w * g.stride_w;
      if (at < 0 || at >= g.width) continue;
      const NarrowVector read = load<NarrowVector>(n.x + (y * g.width + at) * n.x_step + n.channel + channel);
      const float* grad = n.grad + (h * g.out_width + w) * n.grad_step + first;
#pragma GCC unroll 18
      for (int o = 0; o < O; ++o) sum[o] += read * grad[o];
    }
  }
  for (int o = 0; o < O; ++o) store(to + o * kNarrowChannels, sum[o]);
}

static void narrow_weight_gradient(const Narrow& n) {
  constexpr int most = DK_BYTES == 64 ? 18 : 12;  // sums that the registers hold
  for (int64_t channel = 0; channel < kNarrowChannels; channel += kNarrowLanes)
    for (int64_t i = 0; i < n.g->kernel_h; ++i)
      for (int64_t j = 0; j < n.g->kernel_w; ++j) {
        int64_t o = 0;
        for (; o + most <= n.outputs; o += most) narrow_tap_gradient<most>(n, i, j, o, channel);
        for (; o + 6 <= n.outputs; o += 6) narrow_tap_gradient<6>(n, i, j, o, channel);
        for (; o < n.outputs; ++o) narrow_tap_gradient<1>(n, i, j, o, channel);
      }
}

const NarrowKernels kNarrow = {kNarrowLanes, narrow_forward, narrow_weight_gradient};

}  // namespace DK_ISA
}  // namespace dk
