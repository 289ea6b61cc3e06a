// Lines of adjacent numbers between a tensor's dtype and what the kernels compute in, and transposed copies of them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu_variant.h"

namespace dk {

// Lines of n adjacent 16-bit numbers to float and back. Null where one has to be converted after the other.
struct LineKernels {
  void (*from_bfloat16)(const uint16_t* from, float* to, int64_t n);
  void (*to_bfloat16)(const float* from, uint16_t* to, int64_t n);
  void (*from_half)(const uint16_t* from, float* to, int64_t n);
  void (*to_half)(const float* from, uint16_t* to, int64_t n);
};

DK_DECLARE_VARIANTS(LineKernels, kLines)

inline const LineKernels& line_kernels() { return DK_BEST_VARIANT(kLines); }

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class From, class To>
inline void copy_line(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

inline void copy_line(const BFloat16* from, float* to, int64_t n) {
  line_kernels().from_bfloat16(reinterpret_cast<const uint16_t*>(from), to, n);
}
inline void copy_line(const float* from, BFloat16* to, int64_t n) {
  line_kernels().to_bfloat16(from, reinterpret_cast<uint16_t*>(to), n);
}
inline void copy_line(const Half* from, float* to, int64_t n) {
  if (const auto kernel = line_kernels().from_half) return kernel(reinterpret_cast<const uint16_t*>(from), to, n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}
inline void copy_line(const float* from, Half* to, int64_t n) {
  if (const auto kernel = line_kernels().to_half) return kernel(from, reinterpret_cast<uint16_t*>(to), n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// to[c * to_step + r] = from[r * from_step + c].
template <class A>
inline void transpose_plain(const A* from, int64_t from_step, int64_t rows, int64_t columns, A* to, int64_t to_step) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * to_step + r] = from[r * from_step + c];
}

inline void transpose(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to, int64_t to_step) {
  typedef float Quad __attribute__((vector_size(16)));
  const auto load = [](const float* p) {
    Quad q;
    __builtin_memcpy(&q, p, sizeof(Quad));
    return q;
  };
  const int64_t whole = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole; r += 4)
    for (int64_t c = 0; c < whole_columns; c += 4) {
      const float* at = from + r * from_step + c;
      const Quad p = load(at), q = load(at + from_step), s = load(at + 2 * from_step), t = load(at + 3 * from_step);
      const Quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5), st = __builtin_shufflevector(s, t, 0, 4, 1, 5);
      const Quad uv = __builtin_shufflevector(p, q, 2, 6, 3, 7), wx = __builtin_shufflevector(s, t, 2, 6, 3, 7);
      const Quad out[4] = {__builtin_shufflevector(pq, st, 0, 1, 4, 5), __builtin_shufflevector(pq, st, 2, 3, 6, 7),
                           __builtin_shufflevector(uv, wx, 0, 1, 4, 5), __builtin_shufflevector(uv, wx, 2, 3, 6, 7)};
      for (int j = 0; j < 4; ++j) __builtin_memcpy(to + (c + j) * to_step + r, &out[j], sizeof(Quad));
    }
  transpose_plain(from + whole_columns, from_step, whole, columns - whole_columns, to + whole_columns * to_step,
                  to_step);
  transpose_plain(from + whole * from_step, from_step, rows - whole, columns, to + whole, to_step);
}

inline void transpose(const double* from, int64_t from_step, int64_t rows, int64_t columns, double* to,
                      int64_t to_step) {
  transpose_plain(from, from_step, rows, columns, to, to_step);
}

// The same between dtypes, one of them a kernel's: tile by tile, converted in lines where the dtype is the tensor's.
template <class From, class To>
inline void transpose(const From* from, int64_t from_step, int64_t rows, int64_t columns, To* to, int64_t to_step) {
  constexpr int64_t side = 32;
  using A = std::conditional_t<sizeof(From) == 2, To, From>;
  alignas(64) A tile[side * side];
  for (int64_t r = 0; r < rows; r += side)
    for (int64_t c = 0; c < columns; c += side) {
      const int64_t height = std::min(side, rows - r), width = std::min(side, columns - c);
      const From* source = from + r * from_step + c;
      To* target = to + c * to_step + r;
      if constexpr (std::is_same_v<A, To>) {
        for (int64_t i = 0; i < height; ++i) copy_line(source + i * from_step, tile + i * side, width);
        transpose(tile, side, height, width, target, to_step);
      } else {
        transpose(source, from_step, height, width, tile, side);
        for (int64_t i = 0; i < width; ++i) copy_line(tile + i * side, target + i * to_step, height);
      }
    }
}

}  // namespace dk
