// Tensors in kernels that a thread reads and writes by vectors of adjacent channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arguments.h"
#include "cuda_device.h"

namespace dk {

constexpr int64_t kMaxBlocks = 1 << 20;  // of a launch; kernels stride over whatever is more

// How many pieces a size is cut into.
DK_HOST_DEVICE inline int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Memory with strides, in elements.
template <class T>
struct StridedView {
  T* data;
  int64_t n, c, h, w;

  DK_DEVICE T* at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return data + in * n + ic * c + ih * h + iw * w;
  }
};

template <class T>
StridedView<T> strided_view(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class T, int kVector>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Vector {
  T value[kVector];
};

template <class T, class A, int kVector>
DK_DEVICE void read_vector(const T* from, A (&to)[kVector]) {
  const auto read = *reinterpret_cast<const Vector<T, kVector>*>(from);
  for (int v = 0; v < kVector; ++v) to[v] = static_cast<A>(read.value[v]);
}

// To memory that is not shared by a block. By words: compilers would divide the stores of many vectors.
template <class T, class A, int kVector>
DK_DEVICE void write_vector(T* to, const A (&from)[kVector]) {
  constexpr int kWords = sizeof(T) * kVector / sizeof(uint32_t);
  if constexpr (kVector == 1) {
    *to = static_cast<T>(from[0]);
  } else {
    Vector<T, kVector> written;
    for (int v = 0; v < kVector; ++v) written.value[v] = static_cast<T>(from[v]);
    uint32_t word[kWords];
    std::memcpy(word, &written, sizeof(word));
    device::store(to, word);
  }
}

// Whether channels can be read and written as vectors of 16 bytes.
inline bool has_vectors(const Tensor& t) {
  const int64_t wide = 16 / t.element_size();
  return t.stride(1) == 1 && t.size(1) % wide == 0 && t.stride(0) % wide == 0 && t.stride(2) % wide == 0 &&
      t.stride(3) % wide == 0 && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
}

}  // namespace dk
