// deform_kernel_conv on the CPU: deformable kernels and deformable convolution, depthwise. The schemas are here too.
//
// Work is cut by the sizes alone, never by the number of threads, and sums over pieces are taken in a fixed order, so
// results are the same bits for any number of threads. Nothing of the size taps x positions x channels is stored.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "../axis.h"
#include "staging.h"

namespace dk {
namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

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

  Call(const Geometry& geometry, const Tensor& x, const OptionalTensor& data, const OptionalTensor& kernel,
       const Tensor& w)
      : g(geometry), input(x), weight(w), has_data(data), has_kernel(kernel), table(g, has_kernel),
        entries(table_entries(g, has_kernel)), blocks(round_up(g.channels, kBlock) / kBlock),
        offset_step(round_up(g.out_width, kPositions)) {
    if (data) data_offset = View(*data);
    if (kernel) kernel_offset = View(*kernel);
    if (g.height > INT32_MAX / g.width) fail("input: more than 2^31 pixels, got (", g.height, ", ", g.width, ")");
  }

  int64_t table_size() const { return blocks * table.rows * kBlock; }
  int64_t offset_row_size() const { return 2 * g.taps() * offset_step; }
  int64_t block_channels(int64_t block) const { return std::min(kBlock, g.channels - block * kBlock); }

  void make_table(A* to) const {
    std::fill(to, to + table_size(), A(0));
    Buffer<A> plain(g.channels * g.scope_h * g.scope_w);
    const int64_t scope = g.scope_h * g.scope_w;
    // (C, 1, Sh, Sw) walked as C images of one channel.
    for (int64_t c = 0; c < g.channels; ++c)
      load(weight, Box{c, 0, 1, 0, g.scope_h, 0, g.scope_w, 1}, plain.get() + c * scope);
    for (const TableEntry& e : entries)
      for (int64_t c = 0; c < g.channels; ++c)
        to[(c / kBlock * table.rows + e.row) * kBlock + c % kBlock] += A(e.coefficient) * plain.get()[c * scope + e.scope];
  }

  // Loads one row of offsets, zero-filled; false if there is a NaN among them.
  bool load_offsets(const View& v, int64_t image, int64_t h, A* to) const {
    std::fill(to, to + offset_row_size(), A(0));
    load(v, Box{image, 0, 2 * g.taps(), h, 1, offset_step, 0, 1}, to);
    bool nan = false;
    for (int64_t i = 0; i < offset_row_size(); ++i) nan |= to[i] != to[i];
    return !nan;
  }

  void fail_if_nan() const {
    if (!nan) return;
    for (const auto& [name, view] : {std::pair("data_offset", data_offset), std::pair("kernel_offset", kernel_offset)}) {
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
template <class A>
struct Worker {
  Call<A>& call;
  Buffer<A> data_row, kernel_row, scratch;
  Row<A> row{};

  explicit Worker(Call<A>& c)
      : call(c), data_row(c.offset_row_size()), kernel_row(c.offset_row_size()), scratch(scratch_size(c.g.taps())) {
    row.g = &call.g;
    row.offset_step = call.offset_step;
    row.scratch = scratch.get();
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

  // Points row.x at the channels of one image, through `stage` if they do not lie as the kernels need them.
  void set_input(int64_t image, int64_t channel, Buffer<A>& stage) {
    row.x = call.input.template direct<A>(image, channel), row.x_step = call.input.w;
    if (row.x) return;
    load(call.input, Box{image, channel, row.channels, 0, call.g.height, 1, call.g.width * kBlock, kBlock}, stage.get());
    row.x = stage.get(), row.x_step = kBlock;
  }
};

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

Tensor deform_kernel_conv(
    const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset, const Tensor& weight,
    const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation, bool clip) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  Tensor output = empty_in_format_of(input, {g.batch, g.channels, g.out_height, g.out_width});
  if (output.numel() == 0) return output;
  if (input.scalar_type() == ScalarType::Double)
    forward<double>(g, input, data_offset, kernel_offset, weight, output);
  else
    forward<float>(g, input, data_offset, kernel_offset, weight, output);
  return output;
}

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

Gradients deform_kernel_conv_backward(
    const Tensor& grad, const Tensor& input, const OptionalTensor& data_offset, const OptionalTensor& kernel_offset,
    const Tensor& weight, const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation,
    bool clip, bool /*deterministic: always*/, bool /*warn_only*/, const Mask& output_mask) {
  const Geometry g =
      check_arguments(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip);
  check_gradient(grad, input, g);
  Gradients gradients = empty_gradients(input, data_offset, kernel_offset, weight, output_mask);
  if (are_trivial(grad, gradients, output_mask)) return gradients;
  if (input.scalar_type() == ScalarType::Double)
    backward<double>(g, grad, input, data_offset, kernel_offset, weight, gradients, output_mask);
  else
    backward<float>(g, grad, input, data_offset, kernel_offset, weight, gradients, output_mask);
  return gradients;
}

std::string chosen_variant() { return cpu_variant(); }

}  // namespace

STABLE_TORCH_LIBRARY(dk_bench, m) {
  m.def(
      "deform_kernel_conv(Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, bool clip) -> Tensor");
  // Gradients of input, data_offset, kernel_offset and weight; an empty tensor for an offset that is not there and for
  // what the mask leaves out. Where no deterministic algorithm is there, it is an error, or with warn_only a warning.
  m.def(
      "deform_kernel_conv_backward(Tensor grad, Tensor input, Tensor? data_offset, Tensor? kernel_offset, "
      "Tensor weight, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool clip, bool deterministic, "
      "bool warn_only=False, bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)");
  // The instruction set the CPU operators use here: baseline, avx2 or avx512.
  m.def("cpu_variant() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CompositeExplicitAutograd, m) { m.impl("cpu_variant", TORCH_BOX(&chosen_variant)); }

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CPU, m) {
  m.impl("deform_kernel_conv", TORCH_BOX(&deform_kernel_conv));
  m.impl("deform_kernel_conv_backward", TORCH_BOX(&deform_kernel_conv_backward));
}

}  // namespace dk
