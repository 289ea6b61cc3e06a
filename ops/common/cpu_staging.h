// Between tensors of any strides and dtype and the row kernels' planes of adjacent channels.
#pragma once

#include <new>

#include "arguments.h"
#include "cpu_lines.h"
#include "dtypes.h"

namespace dk {

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Uninitialised memory, aligned to a cache line so that no vector straddles two.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<A*>(::operator new(size * sizeof(A) + 64, std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return data_; }

 private:
  A* data_;
};

// A 4-dimensional tensor of any floating dtype and strides.
struct View {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t n = 0, c = 0, h = 0, w = 0;  // strides in elements
  int64_t height = 0, width = 0;

  View() = default;
  explicit View(const Tensor& t)
      : data(t.data_ptr()), type(t.scalar_type()), n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)),
        height(t.size(2)), width(t.size(3)) {}

  // Pixel (image, 0, 0) from channel `channel` on, if the memory is what a row kernel takes; null if it is not.
  template <class A>
  A* direct(int64_t image, int64_t channel) const {
    const bool same = type == (sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
    if (!same || c != 1 || h != w * width) return nullptr;
    return static_cast<A*>(data) + image * n + channel;
  }
};

// A box of channels and rows of one image, and the steps of the A's it is copied from or to.
struct Box {
  int64_t image, channel, channels, row, rows;
  int64_t step_c, step_h, step_w;
};

// Calls copy(tensor element index, plane element index) over the box, along the tensor's memory.
template <class F>
void walk(const View& v, const Box& b, const F& copy) {
  const int64_t start = b.image * v.n + b.channel * v.c + b.row * v.h;
  if (v.c == 1) {
    for (int64_t y = 0; y < b.rows; ++y)
      for (int64_t x = 0; x < v.width; ++x)
        for (int64_t c = 0; c < b.channels; ++c)
          copy(start + y * v.h + x * v.w + c, y * b.step_h + x * b.step_w + c * b.step_c);
  } else {
    for (int64_t c = 0; c < b.channels; ++c)
      for (int64_t y = 0; y < b.rows; ++y)
        for (int64_t x = 0; x < v.width; ++x)
          copy(start + c * v.c + y * v.h + x * v.w, c * b.step_c + y * b.step_h + x * b.step_w);
  }
}

// Calls one of two functions over the box if both sides have numbers that lie side by side: lines(tensor element index,
// plane element index, how many), where they do along the same axis, or transposed(tensor index, its step, plane index,
// its step, lines of the tensor, how many each) where they do along channels on one side and along rows on the other.
template <class Lines, class Transposed>
bool walk_lines(const View& v, const Box& b, const Lines& lines, const Transposed& transposed) {
  const int64_t start = b.image * v.n + b.channel * v.c + b.row * v.h;
  const bool along_c = v.c == 1, along_w = v.w == 1, plane_c = b.step_c == 1, plane_w = b.step_w == 1;
  for (int64_t y = 0; y < b.rows; ++y) {
    const int64_t at = start + y * v.h, to = y * b.step_h;
    if (along_c && plane_c)
      for (int64_t x = 0; x < v.width; ++x) lines(at + x * v.w, to + x * b.step_w, b.channels);
    else if (along_w && plane_w)
      for (int64_t c = 0; c < b.channels; ++c) lines(at + c * v.c, to + c * b.step_c, v.width);
    else if (along_c && plane_w)
      transposed(at, v.w, to, b.step_c, v.width, b.channels);
    else if (along_w && plane_c)
      transposed(at, v.c, to, b.step_w, b.channels, v.width);
    else
      return false;
  }
  return true;
}

template <class A>
void load(const View& v, const Box& b, A* plane) {
  with_types(v.type, [&](auto zero, auto) {
    const auto* data = static_cast<const decltype(zero)*>(v.data);
    const bool done = walk_lines(
        v, b, [&](int64_t from, int64_t to, int64_t n) { copy_line(data + from, plane + to, n); },
        [&](int64_t from, int64_t from_step, int64_t to, int64_t to_step, int64_t rows, int64_t columns) {
          transpose(data + from, from_step, rows, columns, plane + to, to_step);
        });
    if (!done) walk(v, b, [&](int64_t from, int64_t to) { plane[to] = static_cast<A>(data[from]); });
  });
}

template <class A>
void store(const View& v, const Box& b, const A* plane) {
  with_types(v.type, [&](auto zero, auto) {
    auto* data = static_cast<decltype(zero)*>(v.data);
    const bool done = walk_lines(
        v, b, [&](int64_t to, int64_t from, int64_t n) { copy_line(plane + from, data + to, n); },
        [&](int64_t to, int64_t to_step, int64_t from, int64_t from_step, int64_t columns, int64_t rows) {
          transpose(plane + from, from_step, rows, columns, data + to, to_step);
        });
    if (!done) walk(v, b, [&](int64_t to, int64_t from) { data[to] = static_cast<decltype(zero)>(plane[from]); });
  });
}

}  // namespace dk
