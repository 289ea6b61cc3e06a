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

// Coefficients (rows, taps, kSamples) and readings (taps, rows).
template <class A, bool kData>
struct Table {
  static constexpr size_t kBytes = kSamples * sizeof(A) + sizeof(Reading<A, kData>);  // of a row's tap
  static constexpr int kWide = 16 / sizeof(A);  // values of a vector; one lies between rows, for the sake of banks

  int rows, pitch;
  A* coefficients;
  Reading<A, kData>* readings;

  static size_t bytes(const Cut& cut) { return cut.rows() * (cut.taps_at_once * kBytes + kWide * sizeof(A)); }

  DK_DEVICE explicit Table(const Cut& cut)
      : rows(cut.rows()), pitch(cut.taps_at_once * kSamples + kWide),
        coefficients(reinterpret_cast<A*>(device::shared_memory())),
        readings(reinterpret_cast<Reading<A, kData>*>(coefficients + rows * pitch)) {}

  // Of taps from `first` on at the piece's positions from `position` on, for samples from `sample` on. In two turns:
  // they need fewer registers beside the sums than one.
  template <class T>
  DK_DEVICE void fill(const Call<T, A>& a, int position, int first, int taps, int sample) const {
    for_taps(a, rows, position, first, taps, [&](const Place& p, const Tap& tap, int slot, int row) {
      readings[slot * rows + row] = Reading<A, kData>(a, a.input, p, tap);
    });
    const int scope_w = int(a.g.scope_w), top = quotient(sample, scope_w), left = sample - top * scope_w;
    for_taps(a, rows, position, first, taps, [&](const Place& p, const Tap& tap, int slot, int row) {
      const Axes<A> axes = in_scope(a, p, tap);
      const A nan = axes.y.nan() + axes.x.nan();
      A* to = coefficients + row * pitch + slot * kSamples;
      int y = top, x = left;
      for (int s = 0; s < kSamples; s += kWide) {
        A values[kWide];
        for (int k = 0; k < kWide; ++k) {
          values[k] = axes.y.of(y) * axes.x.of(x) + nan;
          if (++x == scope_w) x = 0, ++y;
        }
        write_vector(to + s, values);
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
        read_vector(coefficients + row * pitch + slot * kSamples + s, values);
#pragma unroll
        for (int k = 0; k < kWide; ++k)
          for (int v = 0; v < kChannels; ++v) sum[s + k][v] += values[k] * pixel[v];
      }
    }
  }
};

template <class T, class A, int kChannels, bool kData>
DK_KERNEL void DK_BOUNDS(kThreads / kWarp, sizeof(A) == 8 ? 2 : 3) fill_columns(const ForwardArguments<T, A> a) {
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
      table.fill(a.call, first, tap, count, sample);
      device::sync_block();
      if (there) table.add_taps(a.call.input.data + channel * a.call.input.c, a.cut.row(), count, sum);
    }
    if (!there) continue;
    T* to = a.columns + a.call.element(position, channel) + sample * a.call.depth;
#pragma unroll
    for (int s = 0; s < kSamples; ++s, to += a.call.depth)
      if (sample + s < a.call.samples) write_vector(to, sum[s]);
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
                 Table<A, kData>::bytes(cut), op.stream,
                 ForwardArguments<T, A>{call, cut, sample_parts, static_cast<T*>(to.data_ptr())});
  });
}

}  // namespace dk::unfold
