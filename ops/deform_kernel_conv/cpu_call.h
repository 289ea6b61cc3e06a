// What a call of deform_kernel_conv's forward and backward share: its operands as views, its table, a thread's memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <vector>

#include "axis.h"
#include "../common/cpu_staging.h"
#include "cpu_row.h"

namespace dk {
namespace {

// Which scope positions make up a row of the table, and how much of each: W'[row] = sum of coefficient * W[scope].
struct TableEntry {
  int64_t row, scope;
  double coefficient;
};

std::vector<TableEntry> table_entries(const Geometry& g, bool kernel_offset) {
  std::vector<TableEntry> entries;
  const Table table(g, kernel_offset);
  if (kernel_offset) {
    for (int64_t y = 0; y < g.scope_h; ++y)
      for (int64_t x = 0; x < g.scope_w; ++x)
        entries.push_back({(y + table.border) * table.width + x + table.border, y * g.scope_w + x, 1.0});
    return entries;
  }
  for (int64_t tap = 0; tap < g.taps(); ++tap) {  // rigid: every tap at its resting place
    const auto y = scope_axis<double>(tap / g.kernel_w + (g.scope_h - g.kernel_h) / 2.0, g.scope_h, g.clip);
    const auto x = scope_axis<double>(tap % g.kernel_w + (g.scope_w - g.kernel_w) / 2.0, g.scope_w, g.clip);
    for (int64_t corner = 0; corner < 4; ++corner) {
      const int64_t sy = y.lower + corner / 2, sx = x.lower + corner % 2;
      const double cy = corner / 2 ? y.fraction : 1 - y.fraction, cx = corner % 2 ? x.fraction : 1 - x.fraction;
      if (sy >= 0 && sy < g.scope_h && sx >= 0 && sx < g.scope_w && cy * cx != 0)
        entries.push_back({tap, sy * g.scope_w + sx, cy * cx});
    }
  }
  return entries;
}

// What forward and backward share: the operands, seen as views.
template <class A>
struct Call {
  Geometry g;
  View input, data_offset, kernel_offset, weight;
  bool has_data, has_kernel;
  Table table;
  std::vector<TableEntry> entries;
  int64_t blocks, offset_step;
  std::atomic<bool> nan{false};

  explicit Call(const Operator& op)
      : g(op.g), input(op.input), weight(op.weight), has_data(op.data_offset), has_kernel(op.kernel_offset),
        table(g, has_kernel), entries(table_entries(g, has_kernel)), blocks(round_up(g.channels, kBlock) / kBlock),
        offset_step(round_up(g.out_width, kPositions)) {
    if (has_data) data_offset = View(*op.data_offset);
    if (has_kernel) kernel_offset = View(*op.kernel_offset);
    if (g.height > INT32_MAX / g.width) fail("input: more than 2^31 pixels, got (", g.height, ", ", g.width, ")");
  }

  int64_t table_size() const { return blocks * table.rows * kBlock; }
  int64_t offset_row_size() const { return 2 * g.taps() * offset_step; }
  int64_t block_channels(int64_t block) const { return std::min(kBlock, g.channels - block * kBlock); }

  void make_table(A* to) const {
    std::fill(to, to + table_size(), A(0));
    const int64_t scope = g.scope_h * g.scope_w;
    Buffer<A> plain(scope * kBlock);
    View channels = weight;  // (C, 1, Sh, Sw) seen as one image of C channels
    channels.c = weight.n;
    for (int64_t block = 0; block < blocks; ++block, to += table.rows * kBlock) {
      load(channels, Box{0, block * kBlock, block_channels(block), 0, g.scope_h, 1, g.scope_w * kBlock, kBlock},
           plain.get());
      for (const TableEntry& e : entries)
        for (int64_t c = 0; c < block_channels(block); ++c)
          to[e.row * kBlock + c] += A(e.coefficient) * plain.get()[e.scope * kBlock + c];
    }
  }

  // Loads one row of offsets, zero-filled; false if there is a NaN among them.
  bool load_offsets(const View& v, int64_t image, int64_t h, A* to) const {
    load(v, Box{image, 0, 2 * g.taps(), h, 1, offset_step, 0, 1}, to);
    typename Index<A>::type nan = 0;
    for (int64_t i = 0; i < 2 * g.taps(); ++i, to += offset_step) {
      std::fill(to + g.out_width, to + offset_step, A(0));
      for (int64_t w = 0; w < offset_step; ++w) nan |= to[w] != to[w];
    }
    return !nan;
  }

  void fail_if_nan() const {
    if (!nan) return;
    for (const auto& [name, view] :
         {std::pair("data_offset", data_offset), std::pair("kernel_offset", kernel_offset)}) {
      if (!view.data) continue;
      Buffer<A> row(offset_row_size());
      for (int64_t n = 0; n < g.batch; ++n)
        for (int64_t h = 0; h < g.out_height; ++h) {
          if (load_offsets(view, n, h, row.get())) continue;
          for (int64_t i = 0; i < offset_row_size(); ++i)
            if (row.get()[i] != row.get()[i])
              fail(name, ": NaN at index (", n, ", ", i / offset_step, ", ", h, ", ", i % offset_step, ")");
        }
    }
  }
};

// The memory one thread needs for a row, and the row itself.
template <class A, class R = Row<A>>
struct Worker {
  Call<A>& call;
  Buffer<A> data_row, kernel_row, scratch, zeros;
  R row{};

  explicit Worker(Call<A>& c)
      : call(c), data_row(c.offset_row_size()), kernel_row(c.offset_row_size()), scratch(scratch_size(c.g.taps())),
        zeros(c.g.channels) {
    row.g = &call.g;
    row.offset_step = call.offset_step;
    row.scratch = scratch.get();
    std::fill_n(zeros.get(), c.g.channels, A(0));
    row.zeros = zeros.get();
    row.data_offset = call.has_data ? data_row.get() : nullptr;
    row.kernel_offset = call.has_kernel ? kernel_row.get() : nullptr;
  }

  // False where there is nothing to compute, as the call will fail.
  bool start_row(int64_t image, int64_t h) {
    if (call.nan.load(std::memory_order_relaxed)) return false;
    row.h = h;
    const bool ok = (!call.has_data || call.load_offsets(call.data_offset, image, h, data_row.get())) &&
        (!call.has_kernel || call.load_offsets(call.kernel_offset, image, h, kernel_row.get()));
    if (!ok) call.nan = true;
    return ok;
  }
};

}  // namespace
}  // namespace dk
