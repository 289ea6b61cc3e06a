// Columns on CUDA: a thread for a position, a vector of channels and 16 samples of the scope, whose coefficients of
// every tap are in shared memory, where lanes of a position read the same words.
#pragma once

#include "cuda_points.h"

namespace dk::unfold {

constexpr int kSamples = 16;  // a scope of 4 x 4 in one go, larger ones in several

template <class T, class A>
struct ForwardArguments {
  Call<T, A> call;
  Cut cut;
  int sample_parts;  // of kSamples
  T* columns;
};

// Coefficients and readings of (taps, rows).
template <class A, bool kData>
struct Table {
  static constexpr int kWide = 16 / sizeof(A);     // values of a vector
  static constexpr int kPitch = kSamples + kWide;  // of a row's tap, so that rows lie in different banks
  static constexpr size_t kBytes = kPitch * sizeof(A) + sizeof(Reading<A, kData>);

  int rows;
  A* coefficients;
  Reading<A, kData>* readings;

  DK_DEVICE explicit Table(const Cut& cut)
      : rows(cut.rows()), coefficients(reinterpret_cast<A*>(device::shared_memory())),
        readings(reinterpret_cast<Reading<A, kData>*>(coefficients + rows * cut.taps_at_once * kPitch)) {}

  // Of taps from `first` on at the piece's positions from `position` on, for samples from `sample` on.
  template <class T>
  DK_DEVICE void fill(const Call<T, A>& a, const Cut& cut, int position, int first, int taps, int sample) const {
    for_taps(a, cut, position, first, taps, [&](const Place& p, const Tap& tap, int i) {
      readings[i] = Reading<A, kData>(a, a.input, p, tap);
      const Axes<A> axes = in_scope(a, p, tap);
      A* to = coefficients + i * kPitch;
      for (int s = 0; s < kSamples; ++s) to[s] = axes.y.nan() + axes.x.nan();
      for (int j = 0; j < 4; ++j) {
        const int at = (axes.y.lower + j / 2) * axes.x.size + axes.x.lower + j % 2 - sample;
        if (axes.y.is_there(j / 2) && axes.x.is_there(j % 2) && at >= 0 && at < kSamples)
          to[at] = axes.y.value[j / 2] * axes.x.value[j % 2];
      }
    });
  }

  template <class T, int kChannels>
  DK_DEVICE void add_taps(const T* input, int row, int taps, A (&sum)[kSamples][kChannels]) const {
#pragma unroll(kData ? 1 : 3)
    for (int slot = 0; slot < taps; ++slot) {
      A pixel[kChannels];
      readings[slot * rows + row].read(input, pixel);
#pragma unroll
      for (int s = 0; s < kSamples; s += kWide) {
        A values[kWide];
        read_vector(coefficients + (slot * rows + row) * kPitch + s, values);
#pragma unroll
        for (int k = 0; k < kWide; ++k)
          for (int v = 0; v < kChannels; ++v) sum[s + k][v] += values[k] * pixel[v];
      }
    }
  }
};

template <class T, class A, int kChannels, bool kData>
DK_KERNEL void DK_BOUNDS(kThreads / kWarp, sizeof(A) == 8 ? 3 : 4) fill_columns(const ForwardArguments<T, A> a) {
  const Table<A, kData> table(a.cut);
  const int parts = a.cut.chunks * a.sample_parts, taps = int(a.call.g.taps());
  for (int block = int(device::block_x()); block < a.cut.tiles * parts; block += int(device::blocks_x())) {
    const int tile = quotient(block, parts), part = block - tile * parts;
    const int chunk = quotient(part, a.sample_parts), sample = (part - chunk * a.sample_parts) * kSamples;
    const int first = tile * a.cut.rows(), position = first + a.cut.row(), channel = a.cut.channel(chunk);
    const bool there = position < a.cut.count && channel < a.cut.channels;
    A sum[kSamples][kChannels] = {};
    for (int tap = 0; tap < taps; tap += a.cut.taps_at_once) {
      const int count = a.cut.taps_from(a.call.g, tap);
      device::sync_block();  // for what the memory held before
      table.fill(a.call, a.cut, first, tap, count, sample);
      device::sync_block();
      if (there) table.add_taps(a.call.input.data + channel * a.call.input.c, a.cut.row(), count, sum);
    }
    if (!there) continue;
    T* to = a.columns + a.call.element(position, channel) + times(sample, a.call.depth);
#pragma unroll
    for (int s = 0; s < kSamples; ++s)
      if (sample + s < a.call.samples) write_vector(to + times(s, a.call.depth), sum[s]);
  }
}

template <class T, class A, bool kData>
void run_forward(const UnfoldOperator& op, const Tensor& to) {
  with_vectors<T>(has_vectors(op.input) && has_vectors_of_columns(op, to), [&](auto vector) {
    constexpr int kChannels = decltype(vector)::value;
    const Call<T, A> call(op);
    const Cut cut = Cut(op, op.count, kChannels).keep(op.g, Table<A, kData>::kBytes);
    const int sample_parts = int(pieces(call.samples, kSamples));
    launch_units("unfold_columns", &fill_columns<T, A, kChannels, kData>, cut.tiles, int64_t(cut.chunks) * sample_parts,
                 cut.rows() * cut.taps_at_once * Table<A, kData>::kBytes, op.stream,
                 ForwardArguments<T, A>{call, cut, sample_parts, static_cast<T*>(to.data_ptr())});
  });
}

}  // namespace dk::unfold
