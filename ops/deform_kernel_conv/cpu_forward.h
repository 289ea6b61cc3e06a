// The driver of the forward pass: rows of images, dealt to threads.
#pragma once

#include "../common/cpu_staged_image.h"
#include "cpu_call.h"

namespace dk {
namespace {

// The rows of the image, [first, end), that a row of the output can read.
struct RowRange {
  int64_t first, end;
};

template <class A>
RowRange rows_read(const Row<A>& row) {
  const Geometry& g = *row.g;
  const int64_t top = row.h * g.stride_h - g.pad_h;
  if (!row.data_offset) return {top, top + (g.kernel_h - 1) * g.dilation_h + 1};
  A lowest = A(g.height), highest = -1;
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const A rest = A(top + tap / g.kernel_w * g.dilation_h);
    const A* dy = row.data_offset + 2 * tap * row.offset_step;
    for (int64_t w = 0; w < g.out_width; ++w)
      lowest = std::min(lowest, rest + dy[w]), highest = std::max(highest, rest + dy[w]);
  }
  // The row above a tap and the one below, as far as there are such.
  return {int64_t(std::floor(std::max(lowest, A(-1)))), int64_t(std::floor(std::min(highest, A(g.height)))) + 2};
}

template <class A>
void forward(const Operator& op, const Tensor& output) {
  const Geometry& g = op.g;
  Call<A> call(op);
  const View out(output);
  Buffer<A> table(call.table_size());
  call.make_table(table.get());
  const auto kernel = row_kernels<A>().forward[call.has_data][call.has_kernel];
  const bool reads_tensor = call.input.template direct<A>(0, 0), writes_tensor = out.direct<A>(0, 0);
  torch::stable::parallel_for(0, g.batch * g.out_height, 1, [&](int64_t begin, int64_t end) {
    Worker<A> worker(call);
    Row<A>& row = worker.row;
    row.channels = g.channels, row.table = table.get();
    std::optional<StagedImage<A>> staged;
    if (!reads_tensor) staged.emplace(call.input, g.channels);
    const int64_t step = round_up(g.channels, 64 / int64_t(sizeof(A)));
    Buffer<A> line(writes_tensor ? 0 : g.out_width * step);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / g.out_height, h = i % g.out_height;
      if (!worker.start_row(image, h)) return;
      if (staged) {
        const RowRange rows = rows_read(row);
        row.x = staged->show(image, 0, g.channels, rows.first, rows.end), row.x_step = staged->step;
      } else {
        row.x = call.input.template direct<A>(image, 0), row.x_step = call.input.w;
      }
      row.out = writes_tensor ? out.direct<A>(image, 0) + h * out.h : line.get();
      row.out_step = writes_tensor ? out.w : step;
      kernel(row);
      if (!writes_tensor) store(out, Box{image, 0, g.channels, h, 1, 1, 0, step}, line.get());
    }
  });
  call.fail_if_nan();
}

}  // namespace
}  // namespace dk
