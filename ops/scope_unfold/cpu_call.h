// What unfolding and its backward pass share: operands as views, offsets, and a thread's memory.
#pragma once

#include <atomic>
#include <cmath>
#include <optional>

#include "../common/cpu_staged_image.h"
#include "cpu_cut.h"

namespace dk {
namespace {

template <class A>
struct UnfoldCall {
  const UnfoldOperator& op;
  const Geometry& g;
  View input, data_offset, kernel_offset;
  const int64_t depth, position_size, offsets_size;
  std::atomic<bool> nan{false};

  explicit UnfoldCall(const UnfoldOperator& o)
      : op(o), g(o.g), input(o.input), depth(g.channels / o.groups), position_size(g.scope_h * g.scope_w * depth),
        offsets_size(2 * g.taps() * kLanes) {
    if (op.data_offset) data_offset = View(*op.data_offset);
    if (op.kernel_offset) kernel_offset = View(*op.kernel_offset);
    if (g.height > INT32_MAX / g.width) fail("input: more than 2^31 pixels, got (", g.height, ", ", g.width, ")");
    if (position_size > INT32_MAX) fail("scope: more than 2^31 values a position, got ", position_size);
  }

  int64_t area() const { return g.out_height * g.out_width; }

  // Calls f(view, box, lane) for parts of a few positions of an image's offsets: `box` of `view` are lanes from one on.
  template <class F>
  void for_parts(const View& v, const Stretch& s, const F& f) const {
    const bool flat = v.h == v.w * v.width;  // rows follow each other
    for (int64_t at = s.begin; at < s.end;) {
      const int64_t h = at / g.out_width, w = at % g.out_width;
      View part = v;
      part.width = std::min(s.end - at, flat ? kLanes : g.out_width - w);
      part.data = static_cast<char*>(v.data) + (h * v.h + w * v.w) * element_size(v.type);
      f(part, Box{s.image, 0, 2 * g.taps(), 0, 1, kLanes, 0, 1}, at - s.begin);
      at += part.width;
    }
  }

  // Loads the offsets of a few positions, zero-filled; false if there is a NaN among them.
  bool load_offsets(const View& v, const Stretch& s, A* to) const {
    std::fill_n(to, offsets_size, A(0));
    if (!v.data) return true;
    for_parts(v, s, [&](const View& part, const Box& box, int64_t lane) { load(part, box, to + lane); });
    typename Index<A>::type bad = 0;
    for (int64_t i = 0; i < offsets_size; ++i) bad |= to[i] != to[i];
    return !bad;
  }

  static int64_t element_size(ScalarType type) {
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  }

  void fail_if_nan() const {
    if (!nan) return;
    Buffer<A> offsets(offsets_size);
    for (const auto& [name, view] : {std::pair("data_offset", data_offset), std::pair("kernel_offset", kernel_offset)})
      for (const Stretch& row : stretches(op, g.out_width))
        for (int64_t i = 0; i < 2 * g.taps(); ++i)
          for (int64_t at = row.begin; at < row.end; at += kLanes) {
            const Stretch part{row.image, at, std::min(at + kLanes, row.end)};
            if (load_offsets(view, part, offsets.get())) continue;
            for (int64_t p = 0; p < part.end - at; ++p)
              if (const A value = offsets.get()[i * kLanes + p]; value != value)
                fail(name, ": NaN at index (", row.image, ", ", i, ", ", at / g.out_width, ", ", at % g.out_width + p,
                     ")");
          }
  }
};

// The memory of one thread, and the block of positions that it works on.
template <class A>
struct UnfoldWorker {
  UnfoldCall<A>& call;
  const Geometry& g;
  Buffer<A> data, kernel, scratch, outside;
  std::optional<StagedImage<A>> staged;
  std::vector<Run> runs;
  int64_t channel = 0, channels = 0;
  UnfoldBlock<A> block{};

  // Works on so many channels at a time at most.
  UnfoldWorker(UnfoldCall<A>& c, int64_t most)
      : call(c), g(c.g), data(c.offsets_size), kernel(c.offsets_size), scratch(unfold_scratch_size<A>(g.taps())),
        outside(2 * kRun) {
    std::fill_n(outside.get(), 2 * kRun, A(0));
    if (!call.input.template direct<A>(0, 0)) staged.emplace(call.input, most);
    block.g = &g, block.depth = call.depth;
    block.data_offset = call.op.data_offset ? data.get() : nullptr, block.kernel_offset = kernel.get();
    block.scratch = scratch.get(), block.zeros = outside.get(), block.unread = outside.get() + kRun;
  }

  void set_channels(int64_t first, int64_t count) {
    channel = first, channels = count;
    runs.clear();
    for (int64_t c = first; c < first + count;) {
      const int64_t group = c / call.depth, inside = c % call.depth;
      const int64_t n = std::min({kRun, call.depth - inside, first + count - c});
      runs.push_back({c - first, group * call.op.count * call.position_size + inside, n});
      c += n;
    }
    block.runs = runs.data(), block.run_count = int64_t(runs.size());
  }

  // False where there is nothing to compute, as the call will fail.
  bool start(const Stretch& s, A* columns) {
    if (call.nan.load(std::memory_order_relaxed)) return false;
    if (!call.load_offsets(call.data_offset, s, data.get()) ||
        !call.load_offsets(call.kernel_offset, s, kernel.get())) {
      call.nan = true;
      return false;
    }
    block.position = s.begin, block.positions = s.end - s.begin;
    block.columns = columns + (s.image * call.area() + s.begin - call.op.first) * call.position_size;
    show_image(s);
    return true;
  }

 private:
  void show_image(const Stretch& s) {
    if (!staged) {
      block.x = call.input.template direct<A>(s.image, channel), block.x_step = call.input.w;
      return;
    }
    const int64_t top = s.begin / g.out_width * g.stride_h - g.pad_h;
    const int64_t bottom = (s.end - 1) / g.out_width * g.stride_h - g.pad_h + (g.kernel_h - 1) * g.dilation_h;
    A lowest = 0, highest = 0;
    for (int64_t i = 0; block.data_offset && i < call.offsets_size; ++i)
      if (i / kLanes % 2 == 0) lowest = std::min(lowest, data.get()[i]), highest = std::max(highest, data.get()[i]);
    // The row above a tap and the one below, as far as there are such.
    const A first = std::floor(std::max(A(top) + lowest, A(-1)));
    const A last = std::floor(std::min(A(bottom) + highest, A(g.height)));
    block.x = staged->show(s.image, channel, channels, int64_t(first), int64_t(last) + 2), block.x_step = staged->step;
  }
};

}  // namespace
}  // namespace dk
