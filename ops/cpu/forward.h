// The driver of the forward pass: rows of images, or blocks of channels of images, dealt to threads.
#pragma once

#include "call.h"

namespace dk {
namespace {

template <class A>
void forward_direct(Call<A>& call, const View& output, const A* table) {
  const auto kernel = row_kernels<A>().forward[call.has_data][call.has_kernel];
  torch::stable::parallel_for(0, call.g.batch * call.g.out_height, 1, [&](int64_t begin, int64_t end) {
    Worker<A> worker(call);
    Row<A>& row = worker.row;
    row.channels = call.g.channels, row.table = table;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / call.g.out_height, h = i % call.g.out_height;
      if (!worker.start_row(image, h)) return;
      row.x = call.input.template direct<A>(image, 0), row.x_step = call.input.w;
      row.out = output.direct<A>(image, 0) + h * output.h, row.out_step = output.w;
      kernel(row);
    }
  });
}

template <class A>
void forward_staged(Call<A>& call, const View& output, const A* table) {
  const auto kernel = row_kernels<A>().forward[call.has_data][call.has_kernel];
  const Geometry& g = call.g;
  torch::stable::parallel_for(0, g.batch * call.blocks, 1, [&](int64_t begin, int64_t end) {
    Worker<A> worker(call);
    Row<A>& row = worker.row;
    Buffer<A> x(g.height * g.width * kBlock), out(g.out_width * kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / call.blocks, block = i % call.blocks, channel = block * kBlock;
      row.channels = call.block_channels(block), row.table = table + channel * call.table.rows;
      worker.set_input(image, channel, x);
      row.out = out.get(), row.out_step = kBlock;
      for (int64_t h = 0; h < g.out_height; ++h) {
        if (!worker.start_row(image, h)) return;
        kernel(row);
        store(output, Box{image, channel, row.channels, h, 1, 1, 0, kBlock}, out.get());
      }
    }
  });
}

template <class A>
void forward(const Geometry& g, const Tensor& input, const OptionalTensor& data_offset,
             const OptionalTensor& kernel_offset, const Tensor& weight, const Tensor& output) {
  Call<A> call(g, input, data_offset, kernel_offset, weight);
  const View out(output);
  Buffer<A> table(call.table_size());
  call.make_table(table.get());
  if (call.input.template direct<A>(0, 0) && out.direct<A>(0, 0))
    forward_direct(call, out, table.get());
  else
    forward_staged(call, out, table.get());
  call.fail_if_nan();
}

}  // namespace
}  // namespace dk
