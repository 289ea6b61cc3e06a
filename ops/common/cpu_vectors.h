// Vectors of one instruction set: DK_ISA names its namespace, DK_BYTES is their width. Nothing that is compiled for one
// may call a function shared with other files (that would be compiled for this instruction set, and could be linked
// into code that runs on less).
#pragma once

// The next loop's iterations touch different memory: what the compiler must know to vectorise it.
#if defined(__clang__)
#define DK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DK_INDEPENDENT _Pragma("GCC ivdep")
#endif

// One copy of each, not one in every kernel: they are a small part of the time and most of the compiler's.
#define DK_NOINLINE __attribute__((noinline))

namespace dk {
namespace DK_ISA {

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(DK_BYTES)));
};

// A vector of half the size; of two lanes, one number.
template <class V, class A>
static auto half_of() {
  typedef A Half __attribute__((vector_size(sizeof(V) / 2)));
  if constexpr (sizeof(V) == 2 * sizeof(A))
    return A();
  else
    return Half();
}

template <class V, class A>
static inline V load(const A* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class A>
static inline void store(A* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// The upper half of a vector added to its lower half. Not through memory: that would pin the vector there for its
// whole life.
template <class V>
static inline auto fold(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  if constexpr (lanes == 2)
    return v[0] + v[1];
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  else
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
        __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

}  // namespace DK_ISA
}  // namespace dk
