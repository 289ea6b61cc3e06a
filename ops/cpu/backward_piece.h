// One thread's part of the backward pass: a piece of the channels of one image after the other, row by row.
#pragma once

#include "call.h"

namespace dk {
namespace {

// Images are dealt to at most kGroups groups: as many partial sums of dL/dW are kept. Where there are fewer than kTasks
// images, channels are cut into pieces too, not smaller than about kPiece, as each piece decodes all offsets.
constexpr int64_t kGroups = 32, kTasks = 8, kPiece = 128;

// How the work is cut: by the sizes alone.
struct Cut {
  int64_t groups, pieces, channels;  // of a piece; the last may have fewer

  explicit Cut(const Geometry& g) : groups(std::min(kGroups, g.batch)) {
    const int64_t most = std::min(round_up(kTasks, groups) / groups, round_up(g.channels, kPiece) / kPiece);
    channels = round_up(round_up(g.channels, most) / most, 32);  // whole chunks of any instruction set
    pieces = round_up(g.channels, channels) / channels;
  }
};

// What the threads share. Views without data are of gradients that are not wanted.
template <class A>
struct BackwardCall {
  Call<A>& call;
  Cut cut;
  View grad, grad_input, grad_data, grad_kernel;
  bool wants_weight;
  int64_t ring;  // how many rows of the image a row of the output can touch
  int64_t partial_size;
  Buffer<A> table, grad_tables;
  Buffer<A> data_sums, kernel_sums;  // an offset's partial sums, one a piece, where there are several

  BackwardCall(Call<A>& c, const Tensor& grad_output, const Gradients& gradients, const Mask& wanted)
      : call(c), cut(c.g), grad(grad_output), grad_input(wanted_view(std::get<0>(gradients), wanted[0])),
        grad_data(wanted_view(std::get<1>(gradients), c.has_data && wanted[1])),
        grad_kernel(wanted_view(std::get<2>(gradients), c.has_kernel && wanted[2])), wants_weight(wanted[3]),
        ring(c.has_data ? c.g.height : std::min(c.g.height, (c.g.kernel_h - 1) * c.g.dilation_h + 1)),
        partial_size(cut.pieces > 1 ? c.g.batch * c.g.out_height * c.offset_row_size() : 0), table(c.table_size()),
        grad_tables(wants_weight ? cut.groups * c.table_size() : 0),
        data_sums(grad_data.data ? cut.pieces * partial_size : 0),
        kernel_sums(grad_kernel.data ? cut.pieces * partial_size : 0) {
    call.make_table(table.get());
  }

  static View wanted_view(const Tensor& t, bool wanted) { return wanted ? View(t) : View(); }

  void store_offset_row(const View& to, int64_t image, int64_t h, const A* from) const {
    store(to, Box{image, 0, 2 * call.g.taps(), h, 1, call.offset_step, 0, 1}, from);
  }
};

template <class A>
class PieceWorker {
 public:
  explicit PieceWorker(BackwardCall<A>& shared)
      : b(shared), g(b.call.g), kernels(row_kernels<A>()), chunk(kernels.chunk),
        most_chunks(round_up(b.cut.channels, chunk) / chunk),
        margin(b.call.has_data || b.call.has_kernel ? 0 : std::max<int64_t>(0, (g.kernel_w - 1) * g.dilation_w - g.pad_w)),
        worker(b.call), row(worker.row),
        pixels(most_chunks * b.ring * g.width * 2 * chunk),
        grad(most_chunks * (g.out_width + 2 * margin) * chunk), pair(most_chunks * b.call.table.rows * 2 * chunk),
        line(std::max(g.width, g.out_width) * b.cut.channels),
        list(list_scratch_size<A>(g.taps(), b.call.table.rows)), data_row(b.call.offset_row_size()),
        kernel_row(b.call.offset_row_size()) {
    row.ring = b.ring, row.plane = b.ring * g.width * 2 * chunk;
    row.image = pixels.get(), row.grad = grad.get() + margin * chunk, row.pair_table = pair.get(), row.list_scratch = list.get();
    row.grad_plane = (g.out_width + 2 * margin) * chunk;
    if (margin) std::fill_n(grad.get(), most_chunks * row.grad_plane, A(0));
    row.wants_x = b.grad_input.data, row.wants_weight = b.wants_weight;
  }

  // False where there is nothing to compute, as the call will fail.
  bool run(int64_t group, int64_t which) {
    piece = which, channel = piece * b.cut.channels;
    row.channels = std::min(b.cut.channels, g.channels - channel), row.chunks = round_up(row.channels, chunk) / chunk;
    for_table_rows([&](int64_t at, A* pairs) {
      std::copy_n(b.table.get() + at, chunk, pairs);
      std::fill_n(pairs + chunk, chunk, A(0));
    });
    for (int64_t image = group; image < g.batch; image += b.cut.groups)
      if (!run_image(image)) return false;
    A* sums = b.grad_tables.get() + group * b.call.table_size();
    if (b.wants_weight)
      for_table_rows([&](int64_t at, const A* pairs) { std::copy_n(pairs + chunk, chunk, sums + at); });
    return true;
  }

 private:
  // Calls f(index in the blocks of a table, place in the pairs).
  template <class F>
  void for_table_rows(const F& f) {
    for (int64_t i = 0; i < row.chunks; ++i)
      for (int64_t r = 0; r < b.call.table.rows; ++r) {
        const int64_t c = channel + i * chunk;
        f((c / kBlock * b.call.table.rows + r) * kBlock + c % kBlock, pair.get() + (i * b.call.table.rows + r) * 2 * chunk);
      }
  }

  bool run_image(int64_t image) {
    const auto kernel = kernels.backward[b.call.has_data][b.call.has_kernel];
    entered = left = 0;
    for (int64_t h = 0; h < g.out_height; ++h) {
      if (!worker.start_row(image, h)) return false;
      const int64_t first = h * g.stride_h - g.pad_h, end = first + (g.kernel_h - 1) * g.dilation_h + 1;
      if (b.call.has_data)
        move_ring(image, 0, g.height);
      else
        move_ring(image, std::clamp<int64_t>(first, 0, g.height), std::clamp<int64_t>(end, 0, g.height));
      read_row(b.grad, image, h, g.out_width, {grad.get() + margin * chunk, chunk, row.grad_plane});
      const int64_t partial = ((piece * g.batch + image) * g.out_height + h) * b.call.offset_row_size();
      const bool whole = b.cut.pieces == 1;
      row.grad_data_offset = !b.grad_data.data ? nullptr : whole ? data_row.get() : b.data_sums.get() + partial;
      row.grad_kernel_offset = !b.grad_kernel.data ? nullptr : whole ? kernel_row.get() : b.kernel_sums.get() + partial;
      kernel(row);
      if (whole && b.grad_data.data) b.store_offset_row(b.grad_data, image, h, data_row.get());
      if (whole && b.grad_kernel.data) b.store_offset_row(b.grad_kernel, image, h, kernel_row.get());
    }
    move_ring(image, g.height, g.height);
    return true;
  }

  // Rows [first, end) of the image are what is worked on next. Those before have their gradient, and are left.
  void move_ring(int64_t image, int64_t first, int64_t end) {
    for (; left < first; ++left) {
      if (left >= entered) enter(image, entered++);
      if (row.wants_x) write_row(b.grad_input, image, left, {ring_row(left) + chunk, 2 * chunk, row.plane});
    }
    while (entered < end) enter(image, entered++);
  }

  A* ring_row(int64_t y) const { return pixels.get() + y % b.ring * g.width * 2 * chunk; }

  void enter(int64_t image, int64_t y) { read_row(b.call.input, image, y, g.width, {ring_row(y), 2 * chunk, row.plane}); }

  // The piece's channels of one row, from a tensor into chunks.
  void read_row(const View& from, int64_t image, int64_t y, int64_t width, const ChunkLine<A>& to) {
    const A* direct = from.direct<A>(image, channel);
    if (!direct) load(from, Box{image, channel, row.channels, y, 1, 1, 0, row.channels}, line.get());
    kernels.to_chunks(direct ? Line<const A>{direct + y * from.h, from.w, width, row.channels, from.h}
                             : Line<const A>{line.get(), row.channels, width, row.channels, 0}, to);
  }

  void write_row(const View& to, int64_t image, int64_t y, const ChunkLine<const A>& from) {
    A* direct = to.direct<A>(image, channel);
    kernels.from_chunks(from, direct ? Line<A>{direct + y * to.h, to.w, g.width, row.channels, to.h}
                                     : Line<A>{line.get(), row.channels, g.width, row.channels, 0});
    if (!direct) store(to, Box{image, channel, row.channels, y, 1, 1, 0, row.channels}, line.get());
  }

  BackwardCall<A>& b;
  const Geometry& g;
  const RowKernels<A>& kernels;
  const int64_t chunk, most_chunks;
  const int64_t margin;  // zeros before and after a row of the output's gradient
  Worker<A, BackwardRow<A>> worker;
  BackwardRow<A>& row;
  Buffer<A> pixels, grad, pair, line, list, data_row, kernel_row;
  int64_t piece = 0, channel = 0;
  int64_t entered = 0, left = 0;  // rows of the image that have come into the ring, and that have gone
};

}  // namespace
}  // namespace dk
