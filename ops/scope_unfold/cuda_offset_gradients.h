// The gradients of offsets by those of columns on CUDA: some lanes of a warp for a tap of a position, each adding up
// over its channels; then all over theirs, in an order that is always the same.
#pragma once

#include "cuda_input_gradient.h"

namespace dk::unfold {

template <class T, class A>
struct OffsetArguments {
  Call<T, A> call;
  Cut cut;
  const T* grad;                                        // of columns
  StridedView<A> grad_data_offset, grad_kernel_offset;  // null where not wanted
};

// A tap of a position: where it reads the scope and the image.
template <class A, bool kData>
struct Site {
  ScopeCorners<A> scope;
  Reading<A, kData> image;
};

// Sums over channels of the columns' gradient times what a tap reads, for its samples of the scope; and of the pixels
// times what the samples give them, for its pixels.
template <class A>
struct Dots {
  A scope[4] = {}, image[4] = {};
};

template <int kChannels, class T, class A>
DK_DEVICE void add_channels(const Site<A, false>& site, const T* grad, const T* input, int depth, Dots<A>& dots) {
  A pixel[kChannels], values[4][kChannels];
  site.image.read(input, pixel);
  for (int j = 0; j < 4; ++j) read_vector(grad + times(site.scope.sample[j], depth), values[j]);
  for (int j = 0; j < 4; ++j)
    for (int v = 0; v < kChannels; ++v) dots.scope[j] += values[j][v] * pixel[v];
}

template <int kChannels, class T, class A>
DK_DEVICE void add_channels(const Site<A, true>& site, const T* grad, const T* input, int depth, Dots<A>& dots) {
  A pixels[4][kChannels], values[4][kChannels];
  for (int j = 0; j < 4; ++j) read_pixel(input, site.image.at[j], pixels[j]);
  for (int j = 0; j < 4; ++j) read_vector(grad + times(site.scope.sample[j], depth), values[j]);
  for (int v = 0; v < kChannels; ++v) {
    A read = 0, given = 0;
    for (int j = 0; j < 4; ++j) read += site.image.value(j) * pixels[j][v], given += site.scope.value(j) * values[j][v];
    for (int j = 0; j < 4; ++j) dots.scope[j] += values[j][v] * read, dots.image[j] += pixels[j][v] * given;
  }
}

// The gradient of taps' offsets at a position, which lanes add up. All threads of a warp take part, those of rows that
// are not there with zeros.
template <class A>
struct OffsetGradient {
  A* to;  // dy of the first tap; null where not wanted, or in lanes that do not write
  int64_t step;

  DK_DEVICE OffsetGradient(const StridedView<A>& view, const Place& p, bool writes)
      : to(writes ? view.at(p.n, 0, p.h, p.w) : nullptr), step(view.c) {}

  // Adds up over the lanes of a row, which are neighbours in a warp, in an order that is always the same.
  DK_DEVICE void write(int tap, A dy, A dx, int lanes) const {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2)
      if (mask < lanes) dy += device::shuffle_xor(dy, mask), dx += device::shuffle_xor(dx, mask);
    if (to) to[2 * tap * step] = dy, to[(2 * tap + 1) * step] = dx;
  }
};

template <class T, class A, int kChannels, bool kData>
DK_KERNEL void DK_BOUNDS(kThreads / kWarp, kData ? 4 : 6) sum_offset_gradients(const OffsetArguments<T, A> a) {
  Site<A, kData>* sites = reinterpret_cast<Site<A, kData>*>(device::shared_memory());
  const Call<T, A>& call = a.call;
  const int rows = a.cut.rows(), lanes = a.cut.lanes();
  for (int tile = int(device::block_x()); tile < a.cut.tiles; tile += int(device::blocks_x())) {
    const int first = tile * rows, position = first + a.cut.row();
    const bool there = position < a.cut.count, writes = there && a.cut.lane() == 0;
    const int64_t row = call.element(position, 0);
    const Place p = place(call, position);
    const OffsetGradient<A> of_kernel(a.grad_kernel_offset, p, writes && a.grad_kernel_offset.data);
    const OffsetGradient<A> of_data(a.grad_data_offset, p, writes && a.grad_data_offset.data);
    for (int tap = 0; tap < int(call.g.taps()); tap += a.cut.taps_at_once) {
      const int count = a.cut.taps_from(call.g, tap);
      device::sync_block();  // for what the memory held before
      for_taps(call, a.cut, first, tap, count, [&](const Place& q, const Tap& t, int i) {
        sites[i] = {ScopeCorners<A>(in_scope(call, q, t)), Reading<A, kData>(call, call.input, q, t)};
      });
      device::sync_block();
      for (int slot = 0; slot < count; ++slot) {
        const Site<A, kData>& site = sites[slot * rows + a.cut.row()];
        Dots<A> dots;
        for (int c = there ? a.cut.channel(0) : a.cut.channels; c < a.cut.channels; c += lanes * kChannels) {
          const int64_t element = call.groups == 1 ? row + c : call.element(position, c);
          add_channels<kChannels>(site, a.grad + element, call.input.data + c * call.input.c, call.depth, dots);
        }
        of_kernel.write(tap + slot, there ? site.scope.along_y(dots.scope) : A(0),
                        there ? site.scope.along_x(dots.scope) : A(0), lanes);
        if constexpr (kData)
          of_data.write(tap + slot, there ? site.image.along_y(dots.image) : A(0),
                        there ? site.image.along_x(dots.image) : A(0), lanes);
      }
    }
  }
}

template <class T, class A, bool kData>
void run_offset_gradients(const UnfoldOperator& op, const Tensor& grad, const UnfoldGradients& to) {
  const auto view = [](const OptionalTensor& t) { return t ? strided_view<A>(*t) : StridedView<A>{}; };
  with_vectors<T>(has_vectors(op.input) && has_vectors_of_columns(op, grad), [&](auto vector) {
    constexpr int kChannels = decltype(vector)::value;
    const Cut cut = Cut(op, op.count, kChannels).keep(op.g, sizeof(Site<A, kData>));
    launch_units("unfold_columns_backward", &sum_offset_gradients<T, A, kChannels, kData>, cut.tiles, 1,
                 cut.rows() * cut.taps_at_once * sizeof(Site<A, kData>), op.stream,
                 OffsetArguments<T, A>{Call<T, A>(op), cut, static_cast<const T*>(grad.data_ptr()),
                                       view(to.data_offset), view(to.kernel_offset)});
  });
}

}  // namespace dk::unfold
