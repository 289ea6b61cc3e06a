// The kernels of deform_roi_pool on CUDA: one thread an output forward and for dL/dinput, which is scattered with
// atomics; one warp a bin and group for dL/doffset and dL/dmask, which are gathered and so always the same bits. A box
// that is not finite or names no image, and an offset that is NaN, give NaN: raising would cost a synchronisation.
#pragma once

#include <limits>

#include "../common/cuda_device.h"
#include "../common/dtypes.h"
#include "op.h"

namespace dk {

constexpr int kRoiThreads = 256, kRoiWarp = 32;
constexpr int64_t kRoiMaxBlocks = 1 << 20;  // the kernels stride over whatever is more

template <class T>
struct RoiStrided {
  T* data;
  int64_t n, c, h, w;
};

template <class T>
RoiStrided<T> roi_strided(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// rois (R, 5), offset (R, 2 G, Ph, Pw) and mask (R, 1, Ph, Pw), contiguous; the last two may be null.
template <class T, class A>
struct RoiOperands {
  RoiGeometry g;
  RoiStrided<T> x;
  const A *rois, *offset, *mask;
};

// Where one bin samples.
template <class A>
struct RoiBin {
  RoiBox<A> box;
  RoiAxis<A> y, x;
  A count, mask;
  bool good;
};

template <class T, class A>
DK_DEVICE RoiBin<A> roi_bin(const RoiOperands<T, A>& o, int64_t r, int64_t group, int64_t bin) {
  const RoiGeometry& g = o.g;
  RoiBin<A> b;
  b.box = roi_box(g, o.rois + r * 5);
  b.good = b.box.image >= 0;
  A y = b.box.y, x = b.box.x;
  if (o.offset) {
    const A* at = o.offset + (r * g.groups + group) * 2 * g.bins() + bin;
    b.good = b.good && at[0] == at[0] && at[g.bins()] == at[g.bins()];
    y += roi_shift(g, b.box.height, at[0]), x += roi_shift(g, b.box.width, at[g.bins()]);
  }
  b.y = roi_axis(y, b.box.height, g.out_height, bin / g.out_width, g.sampling_ratio, g.height);
  b.x = roi_axis(x, b.box.width, g.out_width, bin % g.out_width, g.sampling_ratio, g.width);
  const A count = A(b.y.samples) * A(b.x.samples);
  b.count = count > 1 ? count : A(1);
  b.mask = o.mask ? o.mask[r * g.bins() + bin] : A(1);
  return b;
}

// Calls f(y, x) for every sample of a bin that lies on the map.
template <class A, class F>
DK_DEVICE void for_samples(const RoiBin<A>& b, const RoiGeometry& g, const F& f) {
  for (int64_t i = b.y.first; i < b.y.last; ++i) {
    const RoiSample<A> y = roi_sample(b.y.at(i), g.height);
    if (!y.inside) continue;
    for (int64_t j = b.x.first; j < b.x.last; ++j) {
      const RoiSample<A> x = roi_sample(b.x.at(j), g.width);
      if (x.inside) f(y, x);
    }
  }
}

// The four pixels around a sample, as elements of one channel's plane.
template <class T, class A>
struct RoiCorners {
  int64_t at[4];  // low low, low high, high low, high high: y before x

  DK_DEVICE RoiCorners(const RoiStrided<T>& t, const RoiSample<A>& y, const RoiSample<A>& x)
      : at{y.low * t.h + x.low * t.w, y.low * t.h + x.high * t.w, y.high * t.h + x.low * t.w,
           y.high * t.h + x.high * t.w} {}
};

// Splits an index over (R, Cout, Ph, Pw).
struct RoiPlace {
  int64_t roi, channel, bin;

  DK_DEVICE RoiPlace(int64_t i, const RoiGeometry& g)
      : roi(i / (g.out_channels * g.bins())), channel(i / g.bins() % g.out_channels), bin(i % g.bins()) {}
};

template <class T, class A>
DK_KERNEL void roi_forward(RoiOperands<T, A> o, RoiStrided<T> out) {
  const RoiGeometry& g = o.g;
  const int64_t total = g.rois * g.out_channels * g.bins(), step = device::blocks_x() * device::threads();
  for (int64_t i = device::block_x() * device::threads() + device::thread(); i < total; i += step) {
    const RoiPlace p(i, g);
    const RoiBin<A> b = roi_bin(o, p.roi, p.channel / g.group_channels(), p.bin);
    A sum = b.good ? A(0) : std::numeric_limits<A>::quiet_NaN();
    if (b.good) {
      const T* plane = o.x.data + b.box.image * o.x.n + g.input_channel(p.channel, p.bin) * o.x.c;
      for_samples(b, g, [&](const RoiSample<A>& y, const RoiSample<A>& x) {
        const RoiCorners<T, A> corner(o.x, y, x);
        const A upper =
            (1 - x.fraction) * static_cast<A>(plane[corner.at[0]]) + x.fraction * static_cast<A>(plane[corner.at[1]]);
        const A lower =
            (1 - x.fraction) * static_cast<A>(plane[corner.at[2]]) + x.fraction * static_cast<A>(plane[corner.at[3]]);
        sum += (1 - y.fraction) * upper + y.fraction * lower;
      });
    }
    out.data[p.roi * out.n + p.channel * out.c + p.bin / g.out_width * out.h + p.bin % g.out_width * out.w] =
        static_cast<T>(sum / b.count * b.mask);
  }
}

// dL/dinput, added up in A; grad is (R, Cout, Ph, Pw), contiguous.
template <class T, class A>
DK_KERNEL void roi_scatter(RoiOperands<T, A> o, const A* grad, RoiStrided<A> grad_x) {
  const RoiGeometry& g = o.g;
  const int64_t total = g.rois * g.out_channels * g.bins(), step = device::blocks_x() * device::threads();
  for (int64_t i = device::block_x() * device::threads() + device::thread(); i < total; i += step) {
    const RoiPlace p(i, g);
    const RoiBin<A> b = roi_bin(o, p.roi, p.channel / g.group_channels(), p.bin);
    if (!b.good) continue;
    const A out = grad[i] / b.count * b.mask;
    A* plane = grad_x.data + b.box.image * grad_x.n + g.input_channel(p.channel, p.bin) * grad_x.c;
    for_samples(b, g, [&](const RoiSample<A>& y, const RoiSample<A>& x) {
      const RoiCorners<A, A> corner(grad_x, y, x);
      device::add_atomic(plane + corner.at[0], out * (1 - y.fraction) * (1 - x.fraction));
      device::add_atomic(plane + corner.at[1], out * (1 - y.fraction) * x.fraction);
      device::add_atomic(plane + corner.at[2], out * y.fraction * (1 - x.fraction));
      device::add_atomic(plane + corner.at[3], out * y.fraction * x.fraction);
    });
  }
}

// The sum over a warp's lanes, in an order that is always the same; every lane has it.
template <class A>
DK_DEVICE A warp_sum(A value) {
  for (int mask = kRoiWarp / 2; mask > 0; mask /= 2) value += device::shuffle_xor(value, mask);
  return value;
}

// What one channel adds to the gradients of a bin.
template <class A>
struct RoiSums {
  A value = 0, along_y = 0, along_x = 0;
};

template <class T, class A>
DK_DEVICE void add_channel(const RoiOperands<T, A>& o, const RoiBin<A>& b, const T* plane, A out, RoiSums<A>& sums) {
  for_samples(b, o.g, [&](const RoiSample<A>& y, const RoiSample<A>& x) {
    const RoiCorners<T, A> corner(o.x, y, x);
    A pixel[4];
    for (int j = 0; j < 4; ++j) pixel[j] = static_cast<A>(plane[corner.at[j]]);
    const A upper = (1 - x.fraction) * pixel[0] + x.fraction * pixel[1];
    const A lower = (1 - x.fraction) * pixel[2] + x.fraction * pixel[3];
    sums.value += out * ((1 - y.fraction) * upper + y.fraction * lower);
    sums.along_y += out * y.slope * (lower - upper);
    sums.along_x += out * x.slope * ((1 - y.fraction) * (pixel[1] - pixel[0]) + y.fraction * (pixel[3] - pixel[2]));
  });
}

// dL/doffset (R, 2 G, Ph, Pw), and the groups' parts of dL/dmask, (R, G, Ph, Pw). Either may be null. The lanes of a
// warp share the channels of a bin and group: adjacent ones lie side by side in channels_last.
template <class T, class A>
DK_KERNEL void roi_gather(RoiOperands<T, A> o, const A* grad, A* grad_offset, A* grad_mask_parts) {
  const RoiGeometry& g = o.g;
  const int64_t warps = device::threads() / kRoiWarp, total = g.rois * g.groups * g.bins();
  const int lane = device::thread() % kRoiWarp;
  for (int64_t i = device::block_x() * warps + device::thread() / kRoiWarp; i < total;
       i += device::blocks_x() * warps) {
    const int64_t r = i / (g.groups * g.bins()), group = i / g.bins() % g.groups, bin = i % g.bins();
    const RoiBin<A> b = roi_bin(o, r, group, bin);
    RoiSums<A> sums;
    for (int64_t c = group * g.group_channels() + lane; b.good && c < (group + 1) * g.group_channels(); c += kRoiWarp) {
      const T* plane = o.x.data + b.box.image * o.x.n + g.input_channel(c, bin) * o.x.c;
      add_channel(o, b, plane, grad[(r * g.out_channels + c) * g.bins() + bin] / b.count, sums);
    }
    sums = {warp_sum(sums.value), warp_sum(sums.along_y), warp_sum(sums.along_x)};
    if (lane != 0) continue;
    if (grad_mask_parts) grad_mask_parts[i] = sums.value;
    if (!grad_offset) continue;
    A* to = grad_offset + (r * g.groups + group) * 2 * g.bins() + bin;
    to[0] = A(g.gamma) * b.box.height * b.mask * sums.along_y;
    to[g.bins()] = A(g.gamma) * b.box.width * b.mask * sums.along_x;
  }
}

inline int64_t roi_blocks(int64_t threads) {
  const int64_t blocks = (threads + kRoiThreads - 1) / kRoiThreads;
  return blocks < kRoiMaxBlocks ? blocks : kRoiMaxBlocks;
}

template <class A>
const A* roi_data(const OptionalTensor& t) {
  return t ? static_cast<const A*>(t->data_ptr()) : nullptr;
}

// The operands that kernels read in the computing type; they have to live until the launch.
struct RoiCall {
  RoiGeometry g;
  Tensor input, rois;
  OptionalTensor offset, mask;
  void* stream;

  explicit RoiCall(const RoiOperator& op)
      : g(op.g), input(op.input), rois(plain(op.rois, compute_type(input))),
        offset(plain(op.offset, compute_type(input))), mask(plain(op.mask, compute_type(input))), stream(op.stream) {}

  template <class T, class A>
  RoiOperands<T, A> operands() const {
    return {g, roi_strided<T>(input), static_cast<const A*>(rois.data_ptr()), roi_data<A>(offset), roi_data<A>(mask)};
  }
};

template <class T, class A>
void launch_roi_forward(const RoiCall& call, const Tensor& output) {
  const RoiOperands<T, A> o = call.operands<T, A>();
  launch("deform_roi_pool", &roi_forward<T, A>, roi_blocks(output.numel()), 1, kRoiThreads, 0, call.stream, o,
         roi_strided<T>(output));
}

// dL/dinput is added up by atomics; the others are gathered.
inline void alert_roi_not_deterministic(const Mask& wanted, bool warn_only) {
  if (wanted[0])
    alert_not_deterministic(warn_only,
                            "deform_roi_pool_backward: no deterministic algorithm on CUDA; unset "
                            "torch.use_deterministic_algorithms or use the CPU");
}

// Adds to `sums`, which are zeros.
template <class T, class A>
void launch_roi_backward(const RoiCall& call, const Tensor& grad, const Mask& wanted, RoiGradients& sums) {
  const RoiGeometry& g = call.g;
  const RoiOperands<T, A> o = call.operands<T, A>();
  const Tensor out = plain(grad, compute_type(call.input));
  const A* out_data = static_cast<const A*>(out.data_ptr());
  if (wanted[0])
    launch("deform_roi_pool_backward", &roi_scatter<T, A>, roi_blocks(grad.numel()), 1, kRoiThreads, 0, call.stream, o,
           out_data, roi_strided<A>(std::get<0>(sums)));
  const bool of_offset = call.offset && wanted[1], of_mask = call.mask && wanted[2];
  if (!of_offset && !of_mask) return;
  Tensor parts = torch::stable::new_empty(out, Pair{of_mask ? g.rois : 0, g.groups, g.out_height, g.out_width});
  A* to_offset = of_offset ? static_cast<A*>(std::get<1>(sums).data_ptr()) : nullptr;
  A* to_parts = of_mask ? static_cast<A*>(parts.data_ptr()) : nullptr;
  launch("deform_roi_pool_backward", &roi_gather<T, A>, roi_blocks(g.rois * g.groups * g.bins() * kRoiWarp), 1,
         kRoiThreads, 0, call.stream, o, out_data, to_offset, to_parts);
  if (of_mask) {
    const Pair over{1};
    std::get<2>(sums) = torch::stable::sum(parts, torch::headeronly::IntHeaderOnlyArrayRef(over), true);
  }
}

// Kernels on a stream, for the entries of op.h.
struct RoiKernels {
  static void forward(const RoiOperator& op, Tensor& output) {
    if (output.numel() == 0) return;
    with_types(op.input.scalar_type(),
               [&](auto t, auto a) { launch_roi_forward<decltype(t), decltype(a)>(RoiCall(op), output); });
  }

  static void backward(const RoiOperator& op, const Tensor& grad, RoiGradients& sums, const Mask& wanted,
                       Determinism deterministic) {
    if (grad.numel() == 0) return;
    if (deterministic.asked) alert_roi_not_deterministic(wanted, deterministic.warn_only);
    with_types(op.input.scalar_type(),
               [&](auto t, auto a) { launch_roi_backward<decltype(t), decltype(a)>(RoiCall(op), grad, wanted, sums); });
  }
};

}  // namespace dk
