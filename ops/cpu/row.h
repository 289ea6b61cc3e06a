// What one call of a row kernel works on. Independent of the instruction set.
//
// The kernels compute in A (float or double) on planes whose channels lie side by side. The driver gives them the
// tensor's own memory where it has that form (channels_last float or double) and a staged block of channels where
// it has not (contiguous, 16-bit, slices).
#pragma once

#include "../arguments.h"

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "dk_bench needs GCC 12 or later, or clang (set CXX)"
#endif

namespace dk {

constexpr int64_t kBlock = 64;      // channels of a table block, and of a staged plane: 4 KiB of table at scope 4
// Backward reads the table and adds to its gradient at once. Were they two arrays, their rows could lie at equal places
// of two memory pages, and the processor would take each load for one that needs an earlier store. So a row of the
// table and the same row of its gradient lie side by side.
constexpr int64_t kPair = 2 * kBlock;
constexpr int64_t kPositions = 16;  // output positions of a row that are decoded together: one AVX-512 vector

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
  const A* table;          // blocks of (rows, kBlock): see Table; not in backward
  A* out;                  // out_width pixels
  int64_t out_step;

  // Backward only.
  const A* grad;      // out_width pixels
  int64_t grad_step;
  A* pair_table;      // (rows, 2, kBlock): a table row, read, and its gradient, accumulated
  bool wants_weight;  // whether the table's gradient is wanted; the three below are null where they are not
  A* grad_x;          // accumulated; height * width pixels
  int64_t grad_x_step;
  A* grad_data_offset;    // written, as data_offset
  A* grad_kernel_offset;  // written, as kernel_offset

  A* scratch;  // scratch_size(taps) elements
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
inline int64_t scratch_size(int64_t taps) { return taps * kPositions * (10 + 9); }

template <class A>
struct RowKernels {
  using Function = void (*)(const Row<A>&);
  Function forward[2][2];  // [data_offset given][kernel_offset given]
  Function backward[2][2];
};

// The best variant this processor runs.
template <class A>
const RowKernels<A>& row_kernels();

// The instruction set they are for: baseline, avx2 or avx512.
const char* cpu_variant();

}  // namespace dk
