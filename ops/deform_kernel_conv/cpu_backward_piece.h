// One thread's part of the backward pass: a piece of the channels of one image after the other, row by row.
#pragma once

#include "cpu_call.h"
#include "cpu_image_ring.h"

namespace dk {
namespace {

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
        ring(c.has_data ? c.g.height : ImageRing<A>::rows_touched(c.g)),
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
      : b(shared), g(b.call.g), chunk(row_kernels<A>().chunk), worker(b.call), row(worker.row),
        ring(g, b.cut, b.call.input, b.grad, b.grad_input, b.ring, b.call.has_data || b.call.has_kernel, row),
        pair(b.cut.channels * b.call.table.rows * 2), list(list_scratch_size<A>(g.taps(), b.call.table.rows)),
        data_row(b.call.offset_row_size()), kernel_row(b.call.offset_row_size()) {
    row.pair_table = pair.get(), row.wants_weight = b.wants_weight, row.list_scratch = list.get();
  }

  // False where there is nothing to compute, as the call will fail.
  bool run(int64_t group, int64_t piece) {
    ring.set_channels(b.cut, piece);
    for_table_rows(piece, [&](int64_t at, A* pairs) {
      std::copy_n(b.table.get() + at, chunk, pairs);
      std::fill_n(pairs + chunk, chunk, A(0));
    });
    for (int64_t image = group; image < g.batch; image += b.cut.groups)
      if (!run_image(image, piece)) return false;
    A* sums = b.grad_tables.get() + group * b.call.table_size();
    if (b.wants_weight)
      for_table_rows(piece, [&](int64_t at, const A* pairs) { std::copy_n(pairs + chunk, chunk, sums + at); });
    return true;
  }

 private:
  // Calls f(index in the blocks of a table, place in the pairs).
  template <class F>
  void for_table_rows(int64_t piece, const F& f) const {
    const int64_t rows = b.call.table.rows;
    for (int64_t i = 0; i < row.chunks; ++i)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t c = b.cut.first_channel(piece) + i * chunk;
        f((c / kBlock * rows + r) * kBlock + c % kBlock, pair.get() + (i * rows + r) * 2 * chunk);
      }
  }

  bool run_image(int64_t image, int64_t piece) {
    const auto kernel = row_kernels<A>().backward[b.call.has_data][b.call.has_kernel];
    ring.start_image(image);
    for (int64_t h = 0; h < g.out_height; ++h) {
      if (!worker.start_row(image, h)) return false;
      ring.start_row(h);
      const int64_t partial = ((piece * g.batch + image) * g.out_height + h) * b.call.offset_row_size();
      const bool whole = b.cut.pieces == 1;
      row.grad_data_offset = !b.grad_data.data ? nullptr : whole ? data_row.get() : b.data_sums.get() + partial;
      row.grad_kernel_offset = !b.grad_kernel.data ? nullptr : whole ? kernel_row.get() : b.kernel_sums.get() + partial;
      kernel(row);
      if (whole && b.grad_data.data) b.store_offset_row(b.grad_data, image, h, data_row.get());
      if (whole && b.grad_kernel.data) b.store_offset_row(b.grad_kernel, image, h, kernel_row.get());
    }
    ring.finish_image();
    return true;
  }

  BackwardCall<A>& b;
  const Geometry& g;
  const int64_t chunk;
  Worker<A, BackwardRow<A>> worker;
  BackwardRow<A>& row;
  ImageRing<A> ring;
  Buffer<A> pair, list, data_row, kernel_row;
};

}  // namespace
}  // namespace dk
