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
    worker.block.channels = call.g.channels;
    for (int64_t i = begin; i < end; ++i) {
      if (!worker.start(blocks[i], static_cast<A*>(columns.data_ptr()))) return;
      kernel(worker.block);
    }
  });
  call.fail_if_nan();
}

// Gradients of an offset: one a piece of the channels, (pieces, positions of the piece, 2 taps), then their sum.
template <class A>
struct OffsetSums {
  UnfoldCall<A>& call;
  A* const result;
  const int64_t width, size;
  Buffer<A> sums;

  OffsetSums(UnfoldCall<A>& c, const OptionalTensor& to, int64_t pieces)
      : call(c), result(data_of<A>(to)), width(2 * c.g.taps()), size(c.op.count * width),
        sums(result ? pieces * size : 0) {}

  void put(int64_t piece, const Stretch& s, const A* from) const {
    A* to = sums.get() + piece * size + (s.image * call.area() + s.begin - call.op.first) * width;
    for (int64_t p = 0; p < s.end - s.begin; ++p)
      for (int64_t i = 0; i < width; ++i) to[p * width + i] = from[i * kLanes + p];
  }

  void finish(int64_t pieces) const {
    if (!result) return;
    for (const Stretch& s : stretches(call.op, call.area())) {
      const A* from = sums.get() + (s.image * call.area() + s.begin - call.op.first) * width;
      A* to = result + s.image * width * call.area() + s.begin;
      torch::stable::parallel_for(0, width, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t p = 0; p < s.end - s.begin; ++p) {
            A sum = 0;
            for (int64_t piece = 0; piece < pieces; ++piece) sum += from[piece * size + p * width + i];
            to[i * call.area() + p] = sum;
          }
      });
    }
  }
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
        worker.block.grad_data_offset = of_data.result ? data.get() : nullptr;
        worker.block.grad_kernel_offset = of_kernel.result ? kernel.get() : nullptr;
        for (int64_t i = begin; i < end; ++i)
          if (!run_band(worker, bands[i / cut.pieces], i % cut.pieces)) return;
      });
    call.fail_if_nan();
    of_data.finish(cut.pieces), of_kernel.finish(cut.pieces);
  }

 private:
  bool run_band(UnfoldWorker<A>& worker, const Stretch& band, int64_t piece) const {
    UnfoldBlock<A>& block = worker.block;
    const Geometry& g = call.g;
    block.channel = piece * cut.channels, block.channels = std::min(cut.channels, g.channels - block.channel);
    block.grad_x = of_input ? of_input + band.image * g.height * g.width * g.channels + block.channel : nullptr;
    block.grad_step = g.channels;
    const auto kernel = unfold_kernels<A>().backward[call.op.data_offset.has_value()];
    for (int64_t at = band.begin; at < band.end; at += kLanes) {
      const Stretch s{band.image, at, std::min(at + kLanes, band.end)};
      if (!worker.start(s, columns)) return false;
      kernel(block);
      if (of_data.result) of_data.put(piece, s, block.grad_data_offset);
      if (of_kernel.result) of_kernel.put(piece, s, block.grad_kernel_offset);
    }
    return true;
  }

  UnfoldCall<A> call;
  const Cut cut;
  A* const columns;  // read only
  A* const of_input;
  const OffsetSums<A> of_data, of_kernel;
};

}  // namespace
}  // namespace dk
