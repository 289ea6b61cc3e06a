// The driver of the backward pass: blocks of channels of groups of images, dealt to threads.
#pragma once

#include "call.h"

namespace dk {
namespace {

// The gradients of one call. Images are dealt to at most kGroups groups: as many partial sums of dL/dW are kept.
constexpr int64_t kGroups = 32;

template <class A>
struct Backward {
  Call<A>& call;
  bool wants_input, wants_data, wants_kernel, wants_weight;
  View grad, grad_input;
  int64_t groups, partial_size;
  Buffer<A> table, grad_tables, grad_data, grad_kernel;  // the offsets' partial sums: one a block of channels

  Backward(Call<A>& c, const Tensor& grad_output, const Tensor& grad_x, const Mask& wanted)
      : call(c), wants_input(wanted[0]), wants_data(c.has_data && wanted[1]), wants_kernel(c.has_kernel && wanted[2]),
        wants_weight(wanted[3]), grad(grad_output), groups(std::min(kGroups, c.g.batch)),
        partial_size(c.g.batch * c.g.out_height * c.offset_row_size()), table(c.table_size()),
        grad_tables(wants_weight ? groups * c.table_size() : 0), grad_data(wants_data ? c.blocks * partial_size : 0),
        grad_kernel(wants_kernel ? c.blocks * partial_size : 0) {
    if (wants_input) grad_input = View(grad_x);
    call.make_table(table.get());
  }

  void run() {
    torch::stable::parallel_for(0, groups * call.blocks, 1, [&](int64_t begin, int64_t end) {
      Worker<A> worker(call);
      const int64_t plane = call.g.height * call.g.width * kBlock;
      Buffer<A> x(plane), grad_x(wants_input ? plane : 0);
      Buffer<A> grad_row(call.g.out_width * kBlock), pair(call.table.rows * kPair);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / call.blocks, block = i % call.blocks;
        Row<A>& row = worker.row;
        row.channels = call.block_channels(block);
        row.pair_table = pair.get(), row.wants_weight = wants_weight;
        const int64_t at = block * kBlock * call.table.rows;
        for (int64_t r = 0; r < call.table.rows; ++r) {
          std::copy_n(table.get() + at + r * kBlock, kBlock, pair.get() + r * kPair);
          std::fill_n(pair.get() + r * kPair + kBlock, kBlock, A(0));
        }
        for (int64_t image = group; image < call.g.batch; image += groups)
          if (!run_image(worker, image, block, x, grad_x, grad_row)) return;
        for (int64_t r = 0; wants_weight && r < call.table.rows; ++r)
          std::copy_n(pair.get() + r * kPair + kBlock, kBlock, grad_tables.get() + group * call.table_size() + at + r * kBlock);
      }
    });
    call.fail_if_nan();
  }

  bool run_image(Worker<A>& worker, int64_t image, int64_t block, Buffer<A>& x, Buffer<A>& grad_x, Buffer<A>& grad_row) {
    const Geometry& g = call.g;
    const auto kernel = row_kernels<A>().backward[call.has_data][call.has_kernel];
    const int64_t channel = block * kBlock, pixels = g.height * g.width;
    Row<A>& row = worker.row;
    worker.set_input(image, channel, x);
    A* direct = wants_input ? grad_input.direct<A>(image, channel) : nullptr;
    row.grad_x = direct || !wants_input ? direct : grad_x.get(), row.grad_x_step = direct ? grad_input.w : kBlock;
    for (int64_t i = 0; wants_input && i < pixels; ++i) std::fill_n(row.grad_x + i * row.grad_x_step, row.channels, A(0));
    for (int64_t h = 0; h < g.out_height; ++h) {
      if (!worker.start_row(image, h)) return false;
      const A* direct_grad = grad.direct<A>(image, channel);
      if (direct_grad) {
        row.grad = direct_grad + h * grad.h, row.grad_step = grad.w;
      } else {
        load(grad, Box{image, channel, row.channels, h, 1, 1, 0, kBlock}, grad_row.get());
        row.grad = grad_row.get(), row.grad_step = kBlock;
      }
      const int64_t partial = block * partial_size + (image * g.out_height + h) * call.offset_row_size();
      row.grad_data_offset = wants_data ? grad_data.get() + partial : nullptr;
      row.grad_kernel_offset = wants_kernel ? grad_kernel.get() + partial : nullptr;
      kernel(row);
    }
    if (wants_input && !direct)
      store(grad_input, Box{image, channel, row.channels, 0, g.height, 1, g.width * kBlock, kBlock}, grad_x.get());
    return true;
  }

  // Sums the partial gradients of an offset over the blocks of channels, in their order.
  void finish_offset(A* partial, const Tensor& to) const {
    const View view(to);
    const int64_t rows = call.g.batch * call.g.out_height, size = call.offset_row_size();
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        A* sum = partial + r * size;
        for (int64_t block = 1; block < call.blocks; ++block)
          for (int64_t i = 0; i < size; ++i) sum[i] += sum[block * partial_size + i];
        store(view, Box{r / call.g.out_height, 0, 2 * call.g.taps(), r % call.g.out_height, 1, call.offset_step, 0, 1}, sum);
      }
    });
  }

  void finish_weight(const Tensor& to) const {
    const Geometry& g = call.g;
    const int64_t scope = g.scope_h * g.scope_w, size = call.table_size();
    A* sum = grad_tables.get();
    for (int64_t group = 1; group < groups; ++group)
      for (int64_t i = 0; i < size; ++i) sum[i] += sum[group * size + i];
    Buffer<A> plain(g.channels * scope);
    std::fill_n(plain.get(), g.channels * scope, A(0));
    for (const TableEntry& e : call.entries)
      for (int64_t c = 0; c < g.channels; ++c)
        plain.get()[c * scope + e.scope] += A(e.coefficient) * sum[(c / kBlock * call.table.rows + e.row) * kBlock + c % kBlock];
    const View view(to);
    for (int64_t c = 0; c < g.channels; ++c)
      store(view, Box{c, 0, 1, 0, g.scope_h, 0, g.scope_w, 1}, plain.get() + c * scope);
  }
};

template <class A>
void backward(const Geometry& g, const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset,
              const OptionalTensor& kernel_offset, const Tensor& weight, const Gradients& gradients, const Mask& wanted) {
  Call<A> call(g, input, data_offset, kernel_offset, weight);
  Backward<A> backward(call, grad, std::get<0>(gradients), wanted);
  backward.run();
  if (backward.wants_data) backward.finish_offset(backward.grad_data.get(), std::get<1>(gradients));
  if (backward.wants_kernel) backward.finish_offset(backward.grad_kernel.get(), std::get<2>(gradients));
  if (backward.wants_weight) backward.finish_weight(std::get<3>(gradients));
}

}  // namespace
}  // namespace dk
