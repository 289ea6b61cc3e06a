// depthwise_conv_per_image on the CPU: the rigid row kernels of deform_kernel_conv, with a table made for each image.
//
// Work is cut into images and blocks of channels, which share no sum: results are the same bits for any number of
// threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../deform_kernel_conv/cpu_image_ring.h"
#include "op.h"

namespace dk {
namespace {

// Memory that lies as a row kernel takes it: a tensor's own, or where that lies otherwise a staged copy.
template <class A>
struct Pixels {
  A* data;
  int64_t step;  // between pixels
};

// What a thread holds for one block of channels of one image after the other.
template <class A>
struct Block {
  const Geometry& g;
  Buffer<A> scratch;
  int64_t image = 0, channel = 0;
  Row<A> row{};

  explicit Block(const Geometry& geometry) : g(geometry), scratch(scratch_size(g.taps())) {
    row.g = &g, row.scratch = scratch.get();
  }

  static int64_t count(const Geometry& g) { return (g.channels + kBlock - 1) / kBlock; }

  void start(int64_t number) {
    image = number / count(g), channel = number % count(g) * kBlock;
    row.channels = std::min(kBlock, g.channels - channel);
  }

  // Rows [h, h + rows) of a tensor of height x width pixels, as a box of a staged plane.
  Box box(int64_t h, int64_t rows, int64_t width) const {
    return {image, channel, row.channels, h, rows, 1, width * kBlock, kBlock};
  }

  // The kernels as a table: one row a tap, `step` apart.
  Box table(int64_t step) const { return {image, channel, row.channels, 0, g.kernel_h, 1, g.kernel_w * step, step}; }

  Pixels<A> pixels(const View& v, const Buffer<A>& stage) const {
    A* direct = v.template direct<A>(image, channel);
    return direct ? Pixels<A>{direct, v.w} : Pixels<A>{stage.get(), kBlock};
  }

  // Rows [h, h + rows), copied into the stage where that is needed.
  Pixels<A> read(const View& v, const Buffer<A>& stage, int64_t h, int64_t rows) const {
    const Pixels<A> p = pixels(v, stage);
    if (p.data == stage.get()) load(v, box(h, rows, v.width), p.data);
    return p.data == stage.get() ? p : Pixels<A>{p.data + h * v.h, p.step};
  }
};

template <class A>
Buffer<A> stage_for(const View& v, int64_t rows) {
  return Buffer<A>(v.template direct<A>(0, 0) ? 0 : rows * v.width * kBlock);
}

template <class A>
void forward(const Geometry& g, const View& input, const View& weight, const View& output) {
  const auto kernel = row_kernels<A>().forward[false][false];
  torch::stable::parallel_for(0, g.batch * Block<A>::count(g), 1, [&](int64_t begin, int64_t end) {
    Block<A> block(g);
    Row<A>& row = block.row;
    const Buffer<A> table(g.taps() * kBlock), x = stage_for<A>(input, g.height), out = stage_for<A>(output, 1);
    row.table = table.get();
    for (int64_t i = begin; i < end; ++i) {
      block.start(i);
      load(weight, block.table(kBlock), table.get());
      const Pixels<A> image = block.read(input, x, 0, g.height), to = block.pixels(output, out);
      row.x = image.data, row.x_step = image.step, row.out = to.data, row.out_step = to.step;
      for (row.h = 0; row.h < g.out_height; ++row.h) {
        kernel(row);
        if (row.out == out.get())
          store(output, block.box(row.h, 1, g.out_width), row.out);
        else
          row.out += output.h;
      }
    }
  });
}

// A thread's kernels and their gradients, as backward's row kernels take them.
template <class A>
struct KernelPairs {
  const Geometry& g;
  const RowKernels<A>& kernels = row_kernels<A>();
  BackwardRow<A>& row;
  Buffer<A> pair, plain;

  KernelPairs(const Geometry& geometry, const Cut& cut, BackwardRow<A>& to)
      : g(geometry), row(to), pair(g.taps() * cut.channels * 2), plain(g.taps() * cut.channels) {
    row.pair_table = pair.get();
  }

  Box box(int64_t image, int64_t channel) const {
    return {image, channel, row.channels, 0, g.kernel_h, 1, g.kernel_w * row.channels, row.channels};
  }

  void read(const View& weight, int64_t image, int64_t channel) const {
    load(weight, box(image, channel), plain.get());
    kernels.to_chunks({plain.get(), row.channels, g.taps(), row.channels, 0},
                      {pair.get(), 2 * kernels.chunk, g.taps() * 2 * kernels.chunk});
  }

  void write(const View& grad_weight, int64_t image, int64_t channel) const {
    kernels.from_chunks({pair.get() + kernels.chunk, 2 * kernels.chunk, g.taps() * 2 * kernels.chunk},
                        {plain.get(), row.channels, g.taps(), row.channels, 0});
    store(grad_weight, box(image, channel), plain.get());
  }
};

template <class A>
void backward(const Geometry& g, const View& grad, const View& input, const View& weight, const View& grad_input,
              const View& grad_weight) {
  const auto kernel = row_kernels<A>().backward[false][false];
  const Cut cut(g);
  torch::stable::parallel_for(0, g.batch * cut.pieces, 1, [&](int64_t begin, int64_t end) {
    BackwardRow<A> row{};
    ImageRing<A> ring(g, cut, input, grad, grad_input, ImageRing<A>::rows_touched(g), false, row);
    const KernelPairs<A> pairs(g, cut, row);
    row.wants_weight = grad_weight.data;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / cut.pieces, piece = i % cut.pieces;
      ring.set_channels(cut, piece);
      pairs.read(weight, image, cut.first_channel(piece));
      ring.start_image(image);
      for (int64_t h = 0; h < g.out_height; ++h) {
        ring.start_row(h);
        kernel(row);
      }
      ring.finish_image();
      if (grad_weight.data) pairs.write(grad_weight, image, cut.first_channel(piece));
    }
  });
}

struct Cpu {
  static void forward(const PerImageOperator& op, Tensor& output) {
    const bool wide = op.input.scalar_type() == ScalarType::Double;
    (wide ? dk::forward<double> : dk::forward<float>)(op.g, View(op.input), View(op.weight), View(output));
  }

  static void backward(const PerImageOperator& op, const Tensor& grad, PerImageGradients& gradients,
                       const Mask& wanted) {
    const auto& [of_input, of_weight] = gradients;
    const bool wide = op.input.scalar_type() == ScalarType::Double;
    (wide ? dk::backward<double> : dk::backward<float>)(op.g, View(grad), View(op.input), View(op.weight),
                                                        wanted[0] ? View(of_input) : View(),
                                                        wanted[1] ? View(of_weight) : View());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  m.def("depthwise_conv_per_image(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation) -> Tensor");
  // Gradients of input and weight; an empty tensor for what the mask leaves out.
  m.def(
      "depthwise_conv_per_image_backward(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, "
      "int[] dilation, bool deterministic, bool warn_only=False, bool[2] output_mask=[True, True]) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("depthwise_conv_per_image", TORCH_BOX(&depthwise_conv_per_image<Cpu>));
  m.impl("depthwise_conv_per_image_backward", TORCH_BOX(&depthwise_conv_per_image_backward<Cpu>));
}

}  // namespace dk
