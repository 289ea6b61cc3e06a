// unfold_columns on the CPU, and the schemas. Work is cut into images: the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "../common/cpu_staging.h"
#include "../deform_kernel_conv/axis.h"
#include "op.h"

namespace dk {
namespace {

// Up to four samples that a tap lies between, of the scope or of the image; -1: outside.
template <class A>
struct Corners {
  int64_t at[4];
  A fy, fx, slope_y, slope_x;

  A coefficient(int j) const { return (j / 2 ? fy : 1 - fy) * (j % 2 ? fx : 1 - fx); }
  A along_y(int j) const { return slope_y * (j / 2 ? 1 : -1) * (j % 2 ? fx : 1 - fx); }
  A along_x(int j) const { return slope_x * (j % 2 ? 1 : -1) * (j / 2 ? fy : 1 - fy); }
};

template <class A>
Corners<A> corners(A y, A x, int64_t height, int64_t width, bool clip) {
  const Axis<A> v = scope_axis<A>(y, height, clip), h = scope_axis<A>(x, width, clip);
  Corners<A> c{{}, v.fraction, h.fraction, v.slope, h.slope};
  for (int j = 0; j < 4; ++j) {
    const int64_t sy = v.lower + j / 2, sx = h.lower + j % 2;
    c.at[j] = sy >= 0 && sy < height && sx >= 0 && sx < width ? sy * width + sx : -1;
  }
  return c;
}

template <class A>
struct Unfold {
  const UnfoldOperator& op;
  const Geometry& g;
  View input, data_offset, kernel_offset;
  const int64_t area, samples, depth;

  explicit Unfold(const UnfoldOperator& o)
      : op(o), g(o.g), input(o.input), area(g.out_height * g.out_width), samples(g.scope_h * g.scope_w),
        depth(g.channels / o.groups) {
    if (op.data_offset) data_offset = View(*op.data_offset);
    if (op.kernel_offset) kernel_offset = View(*op.kernel_offset);
    if (g.height > INT32_MAX / g.width) fail("input: more than 2^31 pixels, got (", g.height, ", ", g.width, ")");
  }

  A offset(const char* name, const View& v, int64_t n, int64_t i, int64_t p) const {
    if (!v.data) return 0;
    const int64_t h = p / g.out_width, w = p % g.out_width;
    A value = 0;
    with_types(v.type, [&](auto zero, auto) {
      value = A(static_cast<const decltype(zero)*>(v.data)[n * v.n + i * v.c + h * v.h + w * v.w]);
    });
    if (value != value) fail(name, ": NaN at index (", n, ", ", i, ", ", h, ", ", w, ")");
    return value;
  }

  Corners<A> in_scope(int64_t n, int64_t k, int64_t p) const {
    const A y = A(k / g.kernel_w) + A(g.scope_h - g.kernel_h) / 2,
            x = A(k % g.kernel_w) + A(g.scope_w - g.kernel_w) / 2;
    return corners<A>(y + offset("kernel_offset", kernel_offset, n, 2 * k, p),
                      x + offset("kernel_offset", kernel_offset, n, 2 * k + 1, p), g.scope_h, g.scope_w, g.clip);
  }

  Corners<A> in_image(int64_t n, int64_t k, int64_t p) const {
    const A y = A(p / g.out_width * g.stride_h - g.pad_h + k / g.kernel_w * g.dilation_h);
    const A x = A(p % g.out_width * g.stride_w - g.pad_w + k % g.kernel_w * g.dilation_w);
    return corners<A>(y + offset("data_offset", data_offset, n, 2 * k, p),
                      x + offset("data_offset", data_offset, n, 2 * k + 1, p), g.height, g.width, false);
  }

  // Calls f(image, its pixels, first position, one behind the last) for the images of the piece.
  template <class F>
  void for_images(const F& f) const {
    Buffer<A> pixels(g.height * g.width * g.channels);
    for (int64_t n = op.first / area; n * area < op.first + op.count; ++n) {
      load(input, Box{n, 0, g.channels, 0, g.height, 1, g.width * g.channels, g.channels}, pixels.get());
      f(n, pixels.get(), std::max<int64_t>(op.first - n * area, 0), std::min(op.first + op.count - n * area, area));
    }
  }

  int64_t column(int64_t n, int64_t p, int64_t s, int64_t c) const {
    const int64_t row = c / depth * op.count + n * area + p - op.first;
    return (row * samples + s) * depth + c % depth;
  }

  void forward(A* columns) const {
    std::fill_n(columns, op.count * samples * g.channels, A(0));
    for_images([&](int64_t n, const A* pixels, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        for (int64_t k = 0; k < g.taps(); ++k) {
          const Corners<A> s = in_scope(n, k, p), x = in_image(n, k, p);
          for (int64_t c = 0; c < g.channels; ++c) {
            A value = 0;
            for (int j = 0; j < 4; ++j)
              if (x.at[j] >= 0) value += x.coefficient(j) * pixels[x.at[j] * g.channels + c];
            for (int i = 0; i < 4; ++i)
              if (s.at[i] >= 0) columns[column(n, p, s.at[i], c)] += s.coefficient(i) * value;
          }
        }
    });
  }

  void backward(const A* grad, A* of_input, A* of_data, A* of_kernel) const {
    for_images([&](int64_t n, const A* pixels, int64_t begin, int64_t end) {
      A* image = of_input ? of_input + n * g.height * g.width * g.channels : nullptr;
      for (int64_t p = begin; p < end; ++p)
        for (int64_t k = 0; k < g.taps(); ++k) {
          const Corners<A> s = in_scope(n, k, p), x = in_image(n, k, p);
          A data_y = 0, data_x = 0, kernel_y = 0, kernel_x = 0;
          for (int64_t c = 0; c < g.channels; ++c) {
            A value = 0, slope = 0;
            for (int j = 0; j < 4; ++j)
              if (x.at[j] >= 0) value += x.coefficient(j) * pixels[x.at[j] * g.channels + c];
            for (int i = 0; i < 4; ++i) {
              if (s.at[i] < 0) continue;
              const A z = grad[column(n, p, s.at[i], c)];
              slope += s.coefficient(i) * z;
              kernel_y += s.along_y(i) * value * z, kernel_x += s.along_x(i) * value * z;
            }
            for (int j = 0; j < 4; ++j) {
              if (x.at[j] < 0) continue;
              data_y += x.along_y(j) * pixels[x.at[j] * g.channels + c] * slope;
              data_x += x.along_x(j) * pixels[x.at[j] * g.channels + c] * slope;
              if (image) image[x.at[j] * g.channels + c] += x.coefficient(j) * slope;
            }
          }
          const int64_t at = (n * 2 * g.taps() + 2 * k) * area + p;
          if (of_data) of_data[at] = data_y, of_data[at + area] = data_x;
          if (of_kernel) of_kernel[at] = kernel_y, of_kernel[at + area] = kernel_x;
        }
    });
  }
};

struct Cpu {
  static ScalarType columns_type(const Tensor& input) { return sum_type(input); }

  static void forward(const UnfoldOperator& op, Tensor& columns) {
    if (columns.scalar_type() == ScalarType::Double)
      Unfold<double>(op).forward(static_cast<double*>(columns.data_ptr()));
    else
      Unfold<float>(op).forward(static_cast<float*>(columns.data_ptr()));
  }

  template <class A>
  static void backward_in(const UnfoldOperator& op, const Tensor& grad, const UnfoldGradients& to) {
    const auto data = [](const OptionalTensor& t) { return t ? static_cast<A*>(t->data_ptr()) : nullptr; };
    Unfold<A>(op).backward(static_cast<const A*>(grad.data_ptr()), data(to.input), data(to.data_offset),
                           data(to.kernel_offset));
  }

  static void backward(const UnfoldOperator& op, const Tensor& grad, UnfoldGradients& to, Determinism) {
    (grad.scalar_type() == ScalarType::Double ? backward_in<double> : backward_in<float>)(op, grad, to);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  // Both work on positions first to first + count of (N, Hout, Wout). Columns are (groups, count, Sh Sw C / groups),
  // contiguous, the channels fastest; on the CPU float32, or float64 of float64 input, on CUDA of input's dtype.
  m.def(
      "unfold_columns(Tensor input, Tensor? data_offset, Tensor? kernel_offset, int[] kernel_size, int[] scope, "
      "int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, Tensor(a!) columns) -> ()");
  // Adds to grad_input, in channels_last, and writes the offsets' gradients, contiguous, of its positions; all float32,
  // or float64. What is None is not wanted.
  m.def(
      "unfold_columns_backward(Tensor grad_columns, Tensor input, Tensor? data_offset, Tensor? kernel_offset, "
      "int[] kernel_size, int[] scope, int[] stride, int[] padding, int[] dilation, bool clip, int groups, int first, "
      "bool deterministic, bool warn_only, Tensor(a!)? grad_input, Tensor(b!)? grad_data_offset, "
      "Tensor(c!)? grad_kernel_offset) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("unfold_columns", TORCH_BOX(&unfold_columns<Cpu>));
  m.impl("unfold_columns_backward", TORCH_BOX(&unfold_columns_backward<Cpu>));
}

}  // namespace dk
