// The drivers of unfolding and of its backward pass: positions of images, and of backward channels too, dealt to
// threads.
#pragma once

#include "cpu_call.h"

namespace dk {
namespace {

template <class A>
A* data_of(const OptionalTensor& t) {
  return t ? static_cast<A*>(t->data_ptr()) : nullptr;
}

template <class A>
void unfold(const UnfoldOperator& op, const Tensor& columns) {
  UnfoldCall<A> call(op);
  const auto kernel = unfold_kernels<A>().forward[op.data_offset.has_value()];
  const std::vector<Stretch> blocks = stretches(op, kLanes);
  torch::stable::parallel_for(0, int64_t(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    UnfoldWorker<A> worker(call, call.g.channels);
    worker.set_channels(0, call.g.channels);
    for (int64_t i = begin; i < end; ++i) {
      if (!worker.start(blocks[i], static_cast<A*>(columns.data_ptr()))) return;
      kernel(worker.block);
    }
  });
  call.fail_if_nan();
}

// The gradient of an offset. Where channels are cut there is one a piece of them, and at last their sum.
template <class A>
class OffsetGradient {
 public:
  OffsetGradient(const UnfoldCall<A>& c, const OptionalTensor& to, int64_t number)
      : call(c), result(to ? View(*to) : View()), pieces(number), width(2 * c.g.taps()),
        partial(to && pieces > 1 ? pieces * c.op.count * width : 0) {}

  bool is_wanted() const { return result.data; }

  // Of one piece, at positions of one image: (2 taps, kLanes).
  void put(int64_t piece, const Stretch& s, const A* from) const {
    if (pieces == 1) return write(s, from);
    for (int64_t i = 0; i < width; ++i) std::copy_n(from + i * kLanes, s.end - s.begin, of_piece(piece, s, i));
  }

  // Adds the pieces up, in their order, at the positions of one call of put.
  void finish(const Stretch& s) const {
    Buffer<A> sums(call.offsets_size);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t p = 0; p < s.end - s.begin; ++p) {
        A sum = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) sum += of_piece(piece, s, i)[p];
        sums.get()[i * kLanes + p] = sum;
      }
    write(s, sums.get());
  }

 private:
  void write(const Stretch& s, const A* from) const {
    call.for_parts(result, s, [&](const View& part, const Box& box, int64_t lane) { store(part, box, from + lane); });
  }

  A* of_piece(int64_t piece, const Stretch& s, int64_t i) const {
    const int64_t before = s.image * call.area() + s.begin - call.op.first;
    return partial.get() + (piece * call.op.count + before) * width + i * (s.end - s.begin);
  }

  const UnfoldCall<A>& call;
  const View result;
  const int64_t pieces, width;
  Buffer<A> partial;
};

template <class A>
class UnfoldBackward {
 public:
  UnfoldBackward(const UnfoldOperator& op, const Tensor& grad, const UnfoldGradients& to)
      : call(op), cut(op), columns(static_cast<A*>(grad.data_ptr())), of_input(data_of<A>(to.input)),
        of_data(call, to.data_offset, cut.pieces), of_kernel(call, to.kernel_offset, cut.pieces) {}

  void run() {
    for (const std::vector<Stretch>& bands : cut.bands)
      torch::stable::parallel_for(0, int64_t(bands.size()) * cut.pieces, 1, [&](int64_t begin, int64_t end) {
        UnfoldWorker<A> worker(call, cut.channels);
        Buffer<A> data(call.offsets_size), kernel(call.offsets_size);
        worker.block.grad_data_offset = of_data.is_wanted() ? data.get() : nullptr;
        worker.block.grad_kernel_offset = of_kernel.is_wanted() ? kernel.get() : nullptr;
        for (int64_t i = begin; i < end; ++i)
          if (!run_band(worker, bands[i / cut.pieces], i % cut.pieces)) return;
      });
    call.fail_if_nan();
    if (cut.pieces > 1) finish();
  }

 private:
  bool run_band(UnfoldWorker<A>& worker, const Stretch& band, int64_t piece) const {
    UnfoldBlock<A>& block = worker.block;
    const Geometry& g = call.g;
    const int64_t channel = piece * cut.channels;
    worker.set_channels(channel, std::min(cut.channels, g.channels - channel));
    block.grad_x = of_input ? of_input + band.image * g.height * g.width * g.channels + channel : nullptr;
    block.grad_step = g.channels;
    const auto kernel = unfold_kernels<A>().backward[call.op.data_offset.has_value()];
    return for_blocks(band, [&](const Stretch& s) {
      if (!worker.start(s, columns)) return false;
      kernel(block);
      if (of_data.is_wanted()) of_data.put(piece, s, block.grad_data_offset);
      if (of_kernel.is_wanted()) of_kernel.put(piece, s, block.grad_kernel_offset);
      return true;
    });
  }

  void finish() const {
    for (const std::vector<Stretch>& bands : cut.bands)
      torch::stable::parallel_for(0, int64_t(bands.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for_blocks(bands[i], [&](const Stretch& s) {
            if (of_data.is_wanted()) of_data.finish(s);
            if (of_kernel.is_wanted()) of_kernel.finish(s);
            return true;
          });
      });
  }

  // Calls f(a few positions of the band) until one is false; whether all were true.
  template <class F>
  static bool for_blocks(const Stretch& band, const F& f) {
    for (int64_t at = band.begin; at < band.end; at += kLanes)
      if (!f(Stretch{band.image, at, std::min(at + kLanes, band.end)})) return false;
    return true;
  }

  UnfoldCall<A> call;
  const Cut cut;
  A* const columns;  // read only
  A* const of_input;
  const OffsetGradient<A> of_data, of_kernel;
};

}  // namespace
}  // namespace dk
