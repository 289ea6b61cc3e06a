// Rows of one image after the other, on their way between tensors and the chunks that backward's row kernels work on.
#pragma once

#include <algorithm>

#include "../common/cpu_staging.h"
#include "cpu_row.h"

namespace dk {
namespace {

// Images are dealt to at most kGroups groups: as many partial sums of dL/dW are kept. Where there are fewer than kTasks
// images, channels are cut into pieces too, not smaller than about kPiece, as each piece decodes all offsets.
constexpr int64_t kGroups = 32, kTasks = 8, kPiece = 128;

// How backward's work is cut: by the sizes alone.
struct Cut {
  int64_t groups, pieces, channels;  // of a piece; the last may have fewer

  explicit Cut(const Geometry& g) : groups(std::min(kGroups, g.batch)) {
    const int64_t most = std::min(round_up(kTasks, groups) / groups, round_up(g.channels, kPiece) / kPiece);
    channels = round_up(round_up(g.channels, most) / most, 32);  // whole chunks of any instruction set
    pieces = round_up(g.channels, channels) / channels;
  }

  int64_t first_channel(int64_t piece) const { return piece * channels; }
};

// A piece of the channels: its pixels and their gradient, in a ring of as many rows as one row of the output touches,
// and a row of the output's gradient. They are what `row` points to.
template <class A>
class ImageRing {
 public:
  // The gradient of x has no data where it is not wanted.
  ImageRing(const Geometry& geometry, const Cut& cut, const View& x, const View& grad_output, const View& grad_x,
            int64_t rows, bool moves, BackwardRow<A>& to)
      : g(geometry), input(x), grad(grad_output), grad_input(grad_x), row(to), kernels(row_kernels<A>()),
        chunk(kernels.chunk), margin(moves ? 0 : std::max<int64_t>(0, (g.kernel_w - 1) * g.dilation_w - g.pad_w)),
        pixels(cut.channels * rows * g.width * 2), grad_row(cut.channels * (g.out_width + 2 * margin)),
        line(std::max(g.width, g.out_width) * cut.channels) {
    row.g = &g, row.ring = rows, row.plane = rows * g.width * 2 * chunk;
    row.grad_plane = (g.out_width + 2 * margin) * chunk;
    row.image = pixels.get(), row.grad = grad_row.get() + margin * chunk, row.wants_x = grad_input.data;
    std::fill_n(grad_row.get(), margin ? cut.channels * (g.out_width + 2 * margin) : 0, A(0));
  }

  // How many rows of the image a row of the output can touch, where taps do not move.
  static int64_t rows_touched(const Geometry& g) { return std::min(g.height, (g.kernel_h - 1) * g.dilation_h + 1); }

  void set_channels(const Cut& cut, int64_t piece) {
    channel = cut.first_channel(piece);
    row.channels = std::min(cut.channels, g.channels - channel), row.chunks = round_up(row.channels, chunk) / chunk;
  }

  void start_image(int64_t number) { image = number, entered = left = 0; }

  // What row h of the output reads and adds to, and its gradient.
  void start_row(int64_t h) {
    const int64_t first = h * g.stride_h - g.pad_h, end = first + (g.kernel_h - 1) * g.dilation_h + 1;
    if (row.ring == g.height)
      move(0, g.height);
    else
      move(std::clamp<int64_t>(first, 0, g.height), std::clamp<int64_t>(end, 0, g.height));
    row.h = h;
    read_row(grad, h, {grad_row.get() + margin * chunk, chunk, row.grad_plane});
  }

  void finish_image() { move(g.height, g.height); }

 private:
  // Rows [first, end) of the image are what is worked on next. Those before have their gradient, and are left.
  void move(int64_t first, int64_t end) {
    for (; left < first; ++left) {
      if (left >= entered) enter(entered++);
      if (row.wants_x) write_row(left, {ring_row(left) + chunk, 2 * chunk, row.plane});
    }
    while (entered < end) enter(entered++);
  }

  A* ring_row(int64_t y) const { return pixels.get() + y % row.ring * g.width * 2 * chunk; }

  void enter(int64_t y) { read_row(input, y, {ring_row(y), 2 * chunk, row.plane}); }

  Line<A> staged(const View& v) const { return {line.get(), row.channels, v.width, row.channels, 0}; }
  Box box(int64_t y) const { return {image, channel, row.channels, y, 1, 1, 0, row.channels}; }

  void read_row(const View& from, int64_t y, const ChunkLine<A>& to) const {
    const A* direct = from.direct<A>(image, channel);
    if (!direct) load(from, box(y), line.get());
    const Line<A> stage = staged(from);
    kernels.to_chunks(direct ? Line<const A>{direct + y * from.h, from.w, from.width, row.channels, from.h}
                             : Line<const A>{stage.at, stage.step, stage.pixels, stage.channels, 0},
                      to);
  }

  void write_row(int64_t y, const ChunkLine<const A>& from) const {
    const View& to = grad_input;
    A* direct = to.direct<A>(image, channel);
    kernels.from_chunks(from, direct ? Line<A>{direct + y * to.h, to.w, to.width, row.channels, to.h} : staged(to));
    if (!direct) store(to, box(y), line.get());
  }

  const Geometry& g;
  const View &input, &grad, &grad_input;
  BackwardRow<A>& row;
  const RowKernels<A>& kernels;
  const int64_t chunk;
  const int64_t margin;  // zeros before and after a row of the output's gradient
  Buffer<A> pixels, grad_row, line;
  int64_t image = 0, channel = 0;
  int64_t entered = 0, left = 0;  // rows of the image that have come into the ring, and that have gone
};

}  // namespace
}  // namespace dk
