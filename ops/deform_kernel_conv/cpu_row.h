// What one call of a row kernel works on. Independent of the instruction set.
//
// The kernels compute in A (float or double) on planes whose channels lie side by side. The driver gives them the
// tensor's own memory where it has that form (channels_last float or double) and a staged block of channels where
// it has not (contiguous, 16-bit, slices).
#pragma once

#include <type_traits>

#include "../common/cpu_variant.h"
#include "axis.h"
#include "op.h"

namespace dk {

constexpr int64_t kBlock = 64;          // channels of a table block: 4 KiB of table at scope 4
constexpr int64_t kSweep = 4 * kBlock;  // channels that the forward pass takes over decoded positions in one go
constexpr int64_t kPositions = 16;      // output positions of a row that are decoded together: one AVX-512 vector

template <class A>
struct Row {
  const Geometry* g;
  int64_t h;         // the output row
  int64_t channels;  // how many, starting at a multiple of kBlock

  const A* x;  // the image: height * width pixels, x_step apart, each of adjacent channels
  int64_t x_step;
  const A* data_offset;    // (2 taps, offset_step), zero-filled up to offset_step; null where rigid
  const A* kernel_offset;  // the same
  int64_t offset_step;     // out_width rounded up to kPositions
  const A* table;          // forward: blocks of (rows, kBlock), see Table
  A* out;                  // forward: out_width pixels
  int64_t out_step;

  const A* zeros;  // forward: as many as channels, what is read outside the image
  A* scratch;      // scratch_size(taps) elements
};

// Backward works on chunks: as many channels of a few rows as the registers take at once, so that what lies close
// together in a chunk is what is used together, whatever the strides of the tensors. A plane is one chunk's. What is
// read and its gradient, which is added to at the same time, lie side by side: were they two arrays, they could lie at
// equal places of two memory pages, and the processor would take a load for one that needs an earlier store.
template <class A>
struct BackwardRow : Row<A> {
  int64_t chunks;  // all below have this many planes
  int64_t ring;    // image holds this many rows of the image: row y is number y % ring
  int64_t plane;   // elements of a plane of it: ring * width * 2 * chunk
  A* image;        // pixels of (x, its gradient)
  const A* grad;   // planes of out_width pixels, and where nothing moves of some zeros before and after
  int64_t grad_plane;
  A* pair_table;  // planes of (rows of Table, 2, chunk): a table row, and its gradient
  bool wants_x;
  bool wants_weight;
  A* grad_data_offset;    // written, as data_offset; null where not wanted
  A* grad_kernel_offset;  // written, as kernel_offset

  A* list_scratch;  // list_scratch_size(taps, rows) elements
};

// The kernel as the row kernels read it. With kernel offsets a row is one scope position, and a border of zeros stands
// around the scope wherever a tap can reach over its edge, so that the four corners of every tap can be read without
// a question. Without, a row is one tap, sampled beforehand at offset zero.
struct Table {
  int64_t border, width, rows;

  Table(const Geometry& g, bool kernel_offset) {
    border = !g.clip || g.scope_h == 1 || g.scope_w == 1;
    width = g.scope_w + 2 * border;
    rows = kernel_offset ? (g.scope_h + 2 * border) * width : g.taps();
  }
};

// Where the decoded taps of kPositions positions lie; integers are stored in slots of A. Per tap: data offsets need 4
// corner indices, 4 coefficients and 2 fractions, kernel offsets 1 index, 4 coefficients, 2 fractions and 2 slopes.
inline int64_t scratch_size(int64_t taps) { return taps * kPositions * 26; }

// A row of pixels, `step` apart, each of adjacent channels; and the same in chunks, `plane` apart.
template <class A>
struct Line {
  A* at;
  int64_t step, pixels, channels;
  int64_t below;  // how far the next row is
};
template <class A>
struct ChunkLine {
  A* at;
  int64_t step, plane;  // step: one chunk, or two where the second holds the gradient
};

// What backward needs to list the taps of kPositions positions: for each up to 20 elements, and 10 vectors of at most
// 64 bytes; and how many lie in each cell of the table.
template <class A>
int64_t list_scratch_size(int64_t taps, int64_t rows) {
  return taps * kPositions * (20 + 10 * 64 / int64_t(sizeof(A))) + rows + 1;
}

template <class A>
struct RowKernels {
  void (*forward[2][2])(const Row<A>&);  // [data_offset given][kernel_offset given]
  void (*backward[2][2])(const BackwardRow<A>&);
  // Backward's chunks: how many channels, and the way into and out of them from pixels of adjacent channels.
  int64_t chunk;
  void (*to_chunks)(const Line<const A>& from, const ChunkLine<A>& to);
  void (*from_chunks)(const ChunkLine<const A>& from, const Line<A>& to);
};

DK_DECLARE_VARIANTS(RowKernels<float>, kFloatRows)
DK_DECLARE_VARIANTS(RowKernels<double>, kDoubleRows)

// The best variant this processor runs.
template <class A>
const RowKernels<A>& row_kernels() {
  if constexpr (std::is_same_v<A, float>)
    return DK_BEST_VARIANT(kFloatRows);
  else
    return DK_BEST_VARIANT(kDoubleRows);
}

}  // namespace dk
