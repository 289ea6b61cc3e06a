// The driver of the backward pass: pieces of the channels of groups of images, dealt to threads; then partial sums.
#pragma once

#include "cpu_backward_piece.h"

namespace dk {
namespace {

template <class A>
struct Backward : BackwardCall<A> {
  using BackwardCall<A>::BackwardCall, BackwardCall<A>::call, BackwardCall<A>::cut, BackwardCall<A>::partial_size;

  void run() {
    torch::stable::parallel_for(0, cut.groups * cut.pieces, 1, [&](int64_t begin, int64_t end) {
      PieceWorker<A> worker(*this);
      for (int64_t i = begin; i < end; ++i)
        if (!worker.run(i / cut.pieces, i % cut.pieces)) return;
    });
    call.fail_if_nan();
  }

  // Sums the partial gradients of an offset over the pieces, in their order.
  void finish_offset(A* partial, const View& to) const {
    if (cut.pieces == 1 || !to.data) return;
    const int64_t rows = call.g.batch * call.g.out_height, size = call.offset_row_size();
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        A* sum = partial + r * size;
        for (int64_t piece = 1; piece < cut.pieces; ++piece)
          for (int64_t i = 0; i < size; ++i) sum[i] += sum[piece * partial_size + i];
        this->store_offset_row(to, r / call.g.out_height, r % call.g.out_height, sum);
      }
    });
  }

  void finish_weight(const Tensor& to) const {
    const Geometry& g = call.g;
    const int64_t scope = g.scope_h * g.scope_w, size = call.table_size();
    A* sum = this->grad_tables.get();
    for (int64_t group = 1; group < cut.groups; ++group)
      for (int64_t i = 0; i < size; ++i) sum[i] += sum[group * size + i];
    Buffer<A> plain(g.channels * scope);
    std::fill_n(plain.get(), g.channels * scope, A(0));
    for (const TableEntry& e : call.entries)
      for (int64_t c = 0; c < g.channels; ++c)
        plain.get()[c * scope + e.scope] +=
            A(e.coefficient) * sum[(c / kBlock * call.table.rows + e.row) * kBlock + c % kBlock];
    const View view(to);
    for (int64_t c = 0; c < g.channels; ++c)
      store(view, Box{c, 0, 1, 0, g.scope_h, 0, g.scope_w, 1}, plain.get() + c * scope);
  }
};

template <class A>
void backward(const Operator& op, const Tensor& grad, const Gradients& gradients, const Mask& wanted) {
  Call<A> call(op);
  Backward<A> backward(call, grad, gradients, wanted);
  backward.run();
  backward.finish_offset(backward.data_sums.get(), backward.grad_data);
  backward.finish_offset(backward.kernel_sums.get(), backward.grad_kernel);
  if (backward.wants_weight) backward.finish_weight(std::get<3>(gradients));
}

}  // namespace
}  // namespace dk
