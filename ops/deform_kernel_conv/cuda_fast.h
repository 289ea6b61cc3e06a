// The tensor-core path of deform_kernel_conv for float32, float16 and bfloat16: which kernels run on what. Data are
// channels_last inside; other memory formats are copied, for each pass anew: to keep such a copy from the forward to
// the backward pass, autograd would have to hold it beside the input, which the layer before holds anyway. Each stored
// type is compiled in a file of its own.
#pragma once

#include <algorithm>

#include "cuda_fast_limits.h"
#include "../common/cuda_device.h"
#include "cuda_offset_gradient.h"
#include "cuda_paths.h"
#include "cuda_scatter.h"
#include "cuda_transpose.h"
#include "cuda_weight_gradient.h"

namespace dk {

constexpr size_t kSharedBytes = 24 * 1024;  // aimed at, so that several blocks fit on a multiprocessor
// dL/dweight is cut into as many shares as have this number of warps. The cut decides on the order of sums, and so does
// not depend on the device that is there.
constexpr int64_t kShareWarps = device::kWarps;

inline int64_t blocks_of(int64_t size, int64_t each) { return (size + each - 1) / each; }

inline Volume volume(int64_t batch, int64_t height, int64_t width) {
  return {int(batch * height * width), int(height), int(width), divisor(height), divisor(width)};
}

inline Sizes sizes_from(const Geometry& g) {
  return {int(g.batch),
          int(g.channels),
          int(g.height),
          int(g.width),
          int(g.out_height),
          int(g.out_width),
          int(g.scope_h),
          int(g.scope_w),
          int(g.kernel_h),
          int(g.kernel_w),
          int(g.stride_h),
          int(g.stride_w),
          int(g.pad_h),
          int(g.pad_w),
          int(g.dilation_h),
          int(g.dilation_w),
          0.5f * float(g.scope_h - g.kernel_h),
          0.5f * float(g.scope_w - g.kernel_w),
          float(g.scope_h - 1),
          float(g.scope_w - 1),
          g.clip,
          divisor(g.kernel_w),
          divisor(g.scope_w)};
}

// Taps prepared together: as many as the aim allows.
inline int taps_at_once(const Sizes& s, int steps, bool split, bool data) {
  int taps = 1;
  while (taps < s.taps() && TileMemory::bytes(taps + 1, steps, split, data) <= kSharedBytes) ++taps;
  return taps;
}

// Whether kernels can work on a tensor's own memory: dense, channels_last, 16-byte vectors of channels.
inline bool is_direct(const Tensor& t) {
  const int64_t wanted[4] = {t.size(1) * t.size(2) * t.size(3), 1, t.size(3) * t.size(1), t.size(1)};
  for (int d = 0; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != wanted[d]) return false;
  return t.size(1) % kLaneChannels == 0 && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
}

// Whether a weight is (C, 1, 4, 4) without gaps, so that several values are loaded at once.
inline bool is_packed(const Tensor& t) {
  return t.size(0) % kLaneChannels == 0 && t.size(2) == 4 && t.size(3) == 4 && t.stride(0) == 16 && t.stride(2) == 4 &&
      t.stride(3) == 1 && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
}

// Memory for a tensor's values that kernels can work on.
inline Tensor empty_direct(const Tensor& like, ScalarType type) {
  Pair sizes = sizes_of(like);
  sizes[1] = blocks_of(sizes[1], kLaneChannels) * kLaneChannels;
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// The values of an operand in such memory: its own, or a copy with channels of zero added.
template <class T>
Tensor direct(const Tensor& t, void* stream) {
  if (is_direct(t)) return t;
  Tensor copy = empty_direct(t, t.scalar_type());
  if (has_planes(t)) {
    transpose<T, T, true>(t, copy, stream);
    return copy;
  }
  if (copy.size(1) != t.size(1)) torch::stable::zero_(copy);
  Tensor part = torch::stable::narrow(copy, 1, 0, t.size(1));
  torch::stable::copy_(part, t);
  return copy;
}

inline Tensor direct_result(const Tensor& result) {
  return is_direct(result) ? result : empty_direct(result, result.scalar_type());
}

// Puts what was computed in `from`, a direct tensor, where it belongs, without channels that were added.
template <class From, class To>
void deliver(const Tensor& from, Tensor& to, void* stream) {
  if (from.data_ptr() == to.data_ptr()) return;
  if (has_planes(to)) return transpose<From, To, false>(from, to, stream);
  Tensor source = from;
  torch::stable::copy_(to, torch::stable::narrow(source, 1, 0, to.size(1)));
}

template <class T>
Pixels<T> pixels(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), int(t.size(1)), uint32_t(t.size(0) * t.size(2) * t.size(3)),
          uint32_t(t.size(1) * sizeof(T))};
}

inline OffsetView offset_view(const Tensor& t, ScalarType own) {
  return {t.data_ptr(), t.scalar_type() != own, int(t.stride(0)), int(t.stride(1)), int(t.stride(2)), int(t.stride(3))};
}

// One call: its operands as the kernels take them. `grad` is the output's gradient, in the backward pass.
template <class T>
class Fast {
 public:
  explicit Fast(const Operator& op)
      : sizes_(sizes_from(op.g)), input_(direct<T>(op.input, op.stream)), has_data_(op.data_offset),
        has_kernel_(op.kernel_offset),
        weight_{static_cast<const T*>(op.weight.data_ptr()), int(op.weight.stride(0)), int(op.weight.stride(2)),
                int(op.weight.stride(3)), is_packed(op.weight)},
        positions_(volume(op.g.batch, op.g.out_height, op.g.out_width)), stream_(op.stream) {
    if (has_data_) offsets_.data = offset_view(*op.data_offset, op.input.scalar_type());
    if (has_kernel_) offsets_.kernel = offset_view(*op.kernel_offset, op.input.scalar_type());
  }

  void forward(Tensor& output) const {
    const Tensor result = direct_result(output);
    if (has_data_)
      run_correlate<true, true>(input_, result);
    else
      run_correlate<false, true>(input_, result);
    deliver<T, T>(result, output, stream_);
  }

  void backward(const Tensor& given_grad, Gradients& gradients, const Mask& wanted, bool deterministic) const {
    const Tensor grad = direct<T>(given_grad, stream_);
    if (wanted[0]) gradient_of_input(grad, std::get<0>(gradients), deterministic);
    if (wanted[3]) gradient_of_weight(grad, std::get<3>(gradients));
    const ScalarType own = input_.scalar_type();
    OffsetGradientArguments<T> arguments{
        sizes_, positions_, offsets_, {}, pixels<const T>(input_), pixels<const T>(grad), weight_, {}};
    if (has_kernel_ && wanted[2]) {
      arguments.grad_offsets.kernel = offset_view(std::get<2>(gradients), own);
      gradient_of_kernel_offset(arguments);
    }
    if (has_data_ && wanted[1]) {
      arguments.grad_offsets.data = offset_view(std::get<1>(gradients), own);
      gradient_of_data_offset(arguments);
    }
  }

 private:
  int warps() const { return int(std::min<int64_t>(blocks_of(sizes_.channels, kGroup), kMostWarps)); }
  int64_t chunks() const { return blocks_of(sizes_.channels, kGroup * warps()); }

  int steps() const { return sizes_.steps(Traits<T>::kHalfSteps); }

  // Calls f with the number of steps as a constant where the scope is a common one, of at most 4 x 4, or else 0.
  template <class F>
  void with_steps(const F& f) const {
    constexpr int kSteps = 4 / Traits<T>::kHalfSteps;
    if (steps() == kSteps && sizes_.bands() == 1)
      f(std::integral_constant<int, kSteps>());
    else
      f(std::integral_constant<int, 0>());
  }

  // Launches as many blocks as the device holds at a time, each with a run of tiles of `results`, to load its weight
  // once and to find the rows above in its cache.
  template <class A>
  void launch_runs(const char* name, void (*kernel)(A), const Volume& results, int64_t chunks, int threads,
                   size_t shared, A arguments) const {
    const int64_t tiles = blocks_of(results.count, kRows);
    const int64_t most = std::max<int64_t>(1, resident_blocks(name, kernel, threads, shared) / chunks);
    const int64_t blocks = std::min(tiles, most);
    arguments.runs = runs_of(tiles, blocks);
    launch(name, kernel, blocks, chunks, threads, shared, stream_, arguments);
  }

  template <bool kData, bool kForward>
  void run_correlate(const Tensor& source, const Tensor& result) const {
    const int taps = taps_at_once(sizes_, steps(), Traits<T>::kSplitHats, kData);
    const Volume results = volume(sizes_.batch, result.size(2), result.size(3));
    with_steps([&](auto steps) {
      const int64_t parts = blocks_of(sizes_.channels, kGroup * kGroupsOf<T, steps.value, kData>);
      const int64_t warps = std::min<int64_t>(parts, kMostWarps), chunks = blocks_of(parts, warps);
      const CorrelateArguments<T> arguments{sizes_,  results,           offsets_, pixels<const T>(source),
                                            weight_, pixels<T>(result), taps,     {}};
      launch_runs("correlate", correlate<T, steps.value, kData, kForward>, results, chunks, int(warps) * kWarp,
                  TileMemory::bytes(taps, this->steps(), Traits<T>::kSplitHats, kData), arguments);
    });
  }

  void gradient_of_input(const Tensor& grad, Tensor& result, bool deterministic) const {
    if (!has_data_) {
      const Tensor sum = direct_result(result);
      run_correlate<false, false>(grad, sum);
      deliver<T, T>(sum, result, stream_);
      return;
    }
    Tensor sum = empty_direct(result, ScalarType::Float);
    torch::stable::zero_(sum);
    const int taps = taps_at_once(sizes_, steps(), Traits<T>::kSplitHats, true);
    const ScatterArguments<T> arguments{
        sizes_, positions_, offsets_, pixels<const T>(grad), weight_, static_cast<float*>(sum.data_ptr()), taps, {}};
    const size_t shared = TileMemory::bytes(taps, steps(), Traits<T>::kSplitHats, true);
    with_steps([&](auto steps) {
      if (deterministic)
        launch("scatter", scatter<T, steps.value, true>, sizes_.batch, chunks(), warps() * kWarp, shared, stream_,
               arguments);
      else
        launch_runs("scatter", scatter<T, steps.value, false>, positions_, chunks(), warps() * kWarp, shared,
                    arguments);
    });
    deliver<float, T>(sum, result, stream_);
  }

  void gradient_of_weight(const Tensor& grad, Tensor& result) const {
    const int64_t groups = blocks_of(sizes_.channels, kWideGroup);
    const int warps = kTileSteps * int(std::min<int64_t>(groups, kMostWarps / kTileSteps));
    const int64_t chunks = blocks_of(groups * kTileSteps, warps), tiles = blocks_of(positions_.count, kRows);
    const int samples = sample_tiles(sizes_),
              taps = taps_at_once(sizes_, kTileSteps, Traits<T>::kSplitProducts, has_data_);
    const int64_t count = std::clamp<int64_t>(kShareWarps / (warps * chunks * samples), 1, tiles);
    const Tensor shares = torch::stable::empty(Pair{count, int64_t(samples) * kSamples, input_.size(1)},
                                               ScalarType::Float, std::nullopt, input_.device());
    const WeightGradientArguments<T> arguments{sizes_,
                                               positions_,
                                               offsets_,
                                               pixels<const T>(input_),
                                               pixels<const T>(grad),
                                               static_cast<float*>(shares.data_ptr()),
                                               runs_of(tiles, count),
                                               samples,
                                               taps};
    const size_t shared = std::max(TileMemory::bytes(taps, kTileSteps, Traits<T>::kSplitProducts, has_data_),
                                   size_t(warps) * kWarp * kHalfSum * sizeof(float));
    const auto run = [&](auto kernel) {
      launch("weight_gradient", kernel, count, chunks * samples, warps * kWarp, shared, stream_, arguments);
    };
    with_steps([&](auto steps) {
      constexpr bool kOneBand = steps.value != 0;
      has_data_ ? run(weight_gradient<T, true, kOneBand>) : run(weight_gradient<T, false, kOneBand>);
    });
    const ReduceArguments<T> reduce{sizes_,  static_cast<const float*>(shares.data_ptr()),
                                    count,   int(input_.size(1)),
                                    samples, static_cast<T*>(result.data_ptr())};
    constexpr int kThreads = kReduceWidth * kReduceDepth;
    launch("reduce_weight_gradient", reduce_weight_gradient<T>, blocks_of(sizes_.channels, kReduceWidth),
           sizes_.scope_h * sizes_.scope_w, kThreads, kThreads * sizeof(float), stream_, reduce);
  }

  template <bool kData>
  void run_kernel_offset_gradient(const OffsetGradientArguments<T>& arguments) const {
    with_steps([&](auto steps) {
      const int64_t parts = blocks_of(sizes_.channels, kGroup * kOffsetGroupsOf<T, steps.value, kData>);
      const int warps = int(std::min<int64_t>(parts, kMostWarps));
      const size_t shared =
          TileMemory::bytes(kKernelTaps, kSampleBlocks, true, kData) + SlopeSums<kKernelTaps>::bytes(warps);
      launch_runs("kernel_offset_gradient", kernel_offset_gradient<T, steps.value, kData>, positions_, 1, warps * kWarp,
                  shared, arguments);
    });
  }

  void gradient_of_kernel_offset(const OffsetGradientArguments<T>& arguments) const {
    has_data_ ? run_kernel_offset_gradient<true>(arguments) : run_kernel_offset_gradient<false>(arguments);
  }

  void gradient_of_data_offset(const OffsetGradientArguments<T>& arguments) const {
    const size_t shared =
        TileMemory::bytes(kDataTaps, steps(), Traits<T>::kSplitHats, true) + SlopeSums<kDataTaps>::bytes(warps());
    with_steps([&](auto steps) {
      launch_runs("data_offset_gradient", data_offset_gradient<T, steps.value>, positions_, 1, warps() * kWarp, shared,
                  arguments);
    });
  }

  Sizes sizes_;
  Tensor input_;
  bool has_data_, has_kernel_;
  Offsets offsets_;
  Weight<T> weight_;
  Volume positions_;
  void* stream_;
};

template <class T>
void fast_forward(const Operator& op, Tensor& output) {
  Fast<T>(op).forward(output);
}

template <class T>
void fast_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted,
                   bool deterministic) {
  Fast<T>(op).backward(grad, gradients, wanted, deterministic);
}

}  // namespace dk
