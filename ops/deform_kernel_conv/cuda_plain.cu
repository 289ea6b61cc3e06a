// The plain path of deform_kernel_conv on CUDA, for what the tensor-core path (cuda_fast.h) does not take: float64,
// huge scopes, huge images. One thread an output in the forward pass; the backward pass scatters dL/dx and dL/dW with
// atomics (so their last bits differ from run to run) and gathers the offsets' gradients with one warp a tap and
// position.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "op.h"
#include "axis.h"
#include "cuda_paths.h"

namespace dk {
namespace {

constexpr int kThreads = 256;  // 8 warps; registers, not threads, limit these kernels
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 1 << 20;  // the kernels stride over whatever is more

template <class T>
struct Strided {
  T* data;
  int64_t n, c, h, w;

  __device__ T& at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return data[in * n + ic * c + ih * h + iw * w];
  }
};

template <class T>
Strided<T> strided(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Offsets are float beside a 16-bit T or have T itself.
template <class T, class A>
struct Offsets {
  Strided<T> own;
  Strided<A> wide;  // one of the two data pointers is null; both where the operand is not given

  __device__ bool given() const { return own.data || wide.data; }
  __device__ A at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return own.data ? static_cast<A>(own.at(n, c, h, w)) : wide.at(n, c, h, w);
  }
};

template <class T, class A>
Offsets<T, A> offsets(const OptionalTensor& t, ScalarType type) {
  Offsets<T, A> result{};
  if (!t) return result;
  if (t->scalar_type() == type)
    result.own = strided<T>(*t);
  else
    result.wide = strided<A>(*t);
  return result;
}

template <class T, class A>
struct Operands {
  Geometry g;
  Strided<T> x, weight;
  Offsets<T, A> data_offset, kernel_offset;
};

// What one tap reads: up to four corners of the image or of the scope. `offset` is an element index without the
// channel; a corner that is not there has weight 0 in all three.
template <class A>
struct Corner {
  int64_t offset;
  A value, along_y, along_x;  // its coefficient, and the coefficient's derivative by dy and dx
};

template <class A>
__device__ void fill_corners(Corner<A> corners[4], int64_t y0, int64_t x0, A fy, A fx, A slope_y, A slope_x,
                             int64_t height, int64_t width, int64_t step_y, int64_t step_x) {
  for (int j = 0; j < 4; ++j) {
    const int64_t y = y0 + j / 2, x = x0 + j % 2;
    const A cy = j / 2 ? fy : 1 - fy, cx = j % 2 ? fx : 1 - fx;
    const bool there = y >= 0 && y < height && x >= 0 && x < width;
    corners[j].offset = there ? y * step_y + x * step_x : 0;
    corners[j].value = there ? cy * cx : A(0);
    corners[j].along_y = there ? slope_y * (j / 2 ? cx : -cx) : A(0);
    corners[j].along_x = there ? slope_x * (j % 2 ? cy : -cy) : A(0);
  }
  if (fy != fy || fx != fx) corners[0].value = fy + fx;  // a NaN must show
}

template <class T, class A>
__device__ void scope_corners(const Operands<T, A>& o, int64_t tap, int64_t n, int64_t h, int64_t w,
                              Corner<A> corners[4]) {
  const Geometry& g = o.g;
  A cy = A(tap / g.kernel_w) + A(g.scope_h - g.kernel_h) / 2, cx = A(tap % g.kernel_w) + A(g.scope_w - g.kernel_w) / 2;
  if (o.kernel_offset.given())
    cy += o.kernel_offset.at(n, 2 * tap, h, w), cx += o.kernel_offset.at(n, 2 * tap + 1, h, w);
  Axis<A> y = scope_axis<A>(cy, g.scope_h, g.clip), x = scope_axis<A>(cx, g.scope_w, g.clip);
  if (cy != cy) y.fraction = cy;
  if (cx != cx) x.fraction = cx;
  fill_corners<A>(corners, y.lower, x.lower, y.fraction, x.fraction, y.slope, x.slope, g.scope_h, g.scope_w, o.weight.h,
                  o.weight.w);
}

template <class T, class A>
__device__ void data_corners(const Operands<T, A>& o, int64_t tap, int64_t n, int64_t h, int64_t w,
                             Corner<A> corners[4]) {
  const Geometry& g = o.g;
  const int64_t base_y = h * g.stride_h - g.pad_h + (tap / g.kernel_w) * g.dilation_h;
  const int64_t base_x = w * g.stride_w - g.pad_w + (tap % g.kernel_w) * g.dilation_w;
  A y = A(base_y), x = A(base_x);
  if (o.data_offset.given()) y += o.data_offset.at(n, 2 * tap, h, w), x += o.data_offset.at(n, 2 * tap + 1, h, w);
  const bool inside = y >= -1 && y < A(g.height) && x >= -1 && x < A(g.width);
  const bool nan = y != y || x != x;
  const A fy = inside ? y - floor(y) : nan ? y + x : A(0), fx = inside ? x - floor(x) : A(0);
  fill_corners<A>(corners, inside ? int64_t(floor(y)) : -2, inside ? int64_t(floor(x)) : -2, fy, fx, A(1), A(1),
                  g.height, g.width, o.x.h, o.x.w);
}

template <class T, class A>
__device__ A gather(const Corner<A> corners[4], const T* from) {
  A sum = 0;
  for (int j = 0; j < 4; ++j)
    if (corners[j].value != 0) sum += corners[j].value * static_cast<A>(from[corners[j].offset]);
  return sum;
}

// Splits an index over (N, C, Hout, Wout), the fastest dimension being the one that lies side by side in memory.
struct Place {
  int64_t n, c, h, w;

  __device__ Place(int64_t i, const Geometry& g, bool channels_fastest) {
    if (channels_fastest) {
      c = i % g.channels, i /= g.channels;
      w = i % g.out_width, i /= g.out_width;
      h = i % g.out_height, n = i / g.out_height;
    } else {
      w = i % g.out_width, i /= g.out_width;
      h = i % g.out_height, i /= g.out_height;
      c = i % g.channels, n = i / g.channels;
    }
  }
};

template <class T, class A>
__global__ void forward_kernel(Operands<T, A> o, Strided<T> out) {
  const int64_t total = o.g.batch * o.g.channels * o.g.out_height * o.g.out_width, taps = o.g.taps();
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < total; i += int64_t(gridDim.x) * kThreads) {
    const Place p(i, o.g, out.c == 1);
    A sum = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      Corner<A> data[4], scope[4];
      data_corners(o, tap, p.n, p.h, p.w, data);
      scope_corners(o, tap, p.n, p.h, p.w, scope);
      sum += gather(data, &o.x.at(p.n, p.c, 0, 0)) * gather(scope, &o.weight.at(p.c, 0, 0, 0));
    }
    out.at(p.n, p.c, p.h, p.w) = static_cast<T>(sum);
  }
}

// dL/dx and dL/dW, summed in A. Either may be null.
template <class T, class A>
__global__ void scatter_kernel(Operands<T, A> o, Strided<T> grad, Strided<A> grad_x, Strided<A> grad_weight) {
  const int64_t total = o.g.batch * o.g.channels * o.g.out_height * o.g.out_width, taps = o.g.taps();
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < total; i += int64_t(gridDim.x) * kThreads) {
    const Place p(i, o.g, grad.c == 1);
    const A g = static_cast<A>(grad.at(p.n, p.c, p.h, p.w));
    for (int64_t tap = 0; tap < taps; ++tap) {
      Corner<A> data[4], scope[4];
      data_corners(o, tap, p.n, p.h, p.w, data);
      scope_corners(o, tap, p.n, p.h, p.w, scope);
      const A read = gather(data, &o.x.at(p.n, p.c, 0, 0)), sampled = gather(scope, &o.weight.at(p.c, 0, 0, 0));
      for (int j = 0; j < 4; ++j) {
        // The gradients have the operands' strides, so a corner's offset serves both.
        if (grad_x.data && data[j].value != 0)
          atomicAdd(&grad_x.at(p.n, p.c, 0, 0) + data[j].offset, g * sampled * data[j].value);
        if (grad_weight.data && scope[j].value != 0)
          atomicAdd(&grad_weight.at(p.c, 0, 0, 0) + scope[j].offset, g * read * scope[j].value);
      }
    }
  }
}

template <class A>
__device__ A warp_sum(A value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

template <class T, class A>
__device__ void write_gradient(const Offsets<T, A>& to, int64_t n, int64_t tap, int64_t h, int64_t w, A dy, A dx) {
  if (to.own.data) {
    to.own.at(n, 2 * tap, h, w) = static_cast<T>(dy), to.own.at(n, 2 * tap + 1, h, w) = static_cast<T>(dx);
  } else if (to.wide.data) {
    to.wide.at(n, 2 * tap, h, w) = dy, to.wide.at(n, 2 * tap + 1, h, w) = dx;
  }
}

// The gradients of both offsets: one warp a tap and position, its lanes over the channels.
template <class T, class A>
__global__ void offset_kernel(Operands<T, A> o, Strided<T> grad, Offsets<T, A> grad_data, Offsets<T, A> grad_kernel) {
  const Geometry& g = o.g;
  const int64_t total = g.batch * g.taps() * g.out_height * g.out_width, warps = int64_t(gridDim.x) * kThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / kWarp; i < total; i += warps) {
    const int64_t w = i % g.out_width, h = i / g.out_width % g.out_height;
    const int64_t tap = i / (g.out_width * g.out_height) % g.taps(), n = i / (g.out_width * g.out_height * g.taps());
    Corner<A> data[4], scope[4];
    data_corners(o, tap, n, h, w, data);
    scope_corners(o, tap, n, h, w, scope);
    A data_y = 0, data_x = 0, kernel_y = 0, kernel_x = 0;
    for (int64_t c = lane; c < g.channels; c += kWarp) {
      const T *image = &o.x.at(n, c, 0, 0), *kernel = &o.weight.at(c, 0, 0, 0);
      const A out = static_cast<A>(grad.at(n, c, h, w));
      const A by_sampled = out * gather(data, image), by_read = out * gather(scope, kernel);
      for (int j = 0; j < 4; ++j) {
        const A pixel = static_cast<A>(image[data[j].offset]), weight = static_cast<A>(kernel[scope[j].offset]);
        data_y += by_read * data[j].along_y * pixel, data_x += by_read * data[j].along_x * pixel;
        kernel_y += by_sampled * scope[j].along_y * weight, kernel_x += by_sampled * scope[j].along_x * weight;
      }
    }
    data_y = warp_sum(data_y), data_x = warp_sum(data_x), kernel_y = warp_sum(kernel_y), kernel_x = warp_sum(kernel_x);
    if (lane == 0) {
      write_gradient(grad_data, n, tap, h, w, data_y, data_x);
      write_gradient(grad_kernel, n, tap, h, w, kernel_y, kernel_x);
    }
  }
}

int blocks_for(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail("deform_kernel_conv: launch of ", kernel, " failed: ", cudaGetErrorString(error));
}

template <class T, class A>
Operands<T, A> operands(const Geometry& g, const Tensor& input, const OptionalTensor& data_offset,
                        const OptionalTensor& kernel_offset, const Tensor& weight) {
  const ScalarType type = input.scalar_type();
  return {g, strided<T>(input), strided<T>(weight), offsets<T, A>(data_offset, type),
          offsets<T, A>(kernel_offset, type)};
}

// Calls f(T(), A()) for the stored and the computing type.
template <class F>
void with_types(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float: return f(float(), float());
    case ScalarType::Double: return f(double(), double());
    case ScalarType::Half: return f(__half(), float());
    default: return f(__nv_bfloat16(), float());
  }
}

// Zeros of the computing type with the strides of `result`, which is dense: itself, where it is of that type.
Tensor zeros_for_sums(Tensor& result) {
  const Tensor zeros = torch::stable::zero_(result);
  return is_16_bit(zeros.scalar_type()) ? torch::stable::to(zeros, ScalarType::Float) : zeros;
}

}  // namespace

void plain_forward(const Operator& op, Tensor& output) {
  with_types(op.input.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    forward_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, static_cast<cudaStream_t>(op.stream)>>>(
        operands<T, A>(op.g, op.input, op.data_offset, op.kernel_offset, op.weight), strided<T>(output));
    check_launch("forward_kernel");
  });
}

void plain_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted) {
  const Geometry& g = op.g;
  Tensor &grad_input = std::get<0>(gradients), &grad_weight = std::get<3>(gradients);
  const OptionalTensor none;
  const OptionalTensor grad_data = op.data_offset && wanted[1] ? OptionalTensor(std::get<1>(gradients)) : none;
  const OptionalTensor grad_kernel = op.kernel_offset && wanted[2] ? OptionalTensor(std::get<2>(gradients)) : none;
  // The sums share the operands' corner offsets, so both must have the same dense strides: copy what is a slice.
  const auto same_strides = [](const Tensor& a, const Tensor& b) { return a.strides().equals(b.strides()); };
  Tensor input = op.input, weight = op.weight;
  if (wanted[0] && !same_strides(input, grad_input)) {
    input = torch::stable::empty_like(grad_input);
    torch::stable::copy_(input, op.input);
  }
  if (wanted[3] && !same_strides(weight, grad_weight)) {
    weight = torch::stable::empty_like(grad_weight);
    torch::stable::copy_(weight, op.weight);
  }
  const OptionalTensor sum_input = wanted[0] ? OptionalTensor(zeros_for_sums(grad_input)) : none;
  const OptionalTensor sum_weight = wanted[3] ? OptionalTensor(zeros_for_sums(grad_weight)) : none;
  with_types(input.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const ScalarType type = input.scalar_type();
    const Operands<T, A> o = operands<T, A>(g, input, op.data_offset, op.kernel_offset, weight);
    const cudaStream_t stream = static_cast<cudaStream_t>(op.stream);
    if (sum_input || sum_weight) {
      scatter_kernel<T, A><<<blocks_for(grad.numel()), kThreads, 0, stream>>>(
          o, strided<T>(grad), sum_input ? strided<A>(*sum_input) : Strided<A>{},
          sum_weight ? strided<A>(*sum_weight) : Strided<A>{});
      check_launch("scatter_kernel");
    }
    if (!grad_data && !grad_kernel) return;
    offset_kernel<T, A><<<blocks_for(g.batch * g.taps() * g.out_height * g.out_width * kWarp), kThreads, 0, stream>>>(
        o, strided<T>(grad), offsets<T, A>(grad_data, type), offsets<T, A>(grad_kernel, type));
    check_launch("offset_kernel");
  });
  // Which does nothing where they are one.
  if (sum_input) torch::stable::copy_(grad_input, *sum_input);
  if (sum_weight) torch::stable::copy_(grad_weight, *sum_weight);
}

}  // namespace dk
