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

template <class V>
struct Four {
  V a, b, c, d;
};

template <class V, class A>
static inline Four<V> load_four(const A* p, int64_t step = sizeof(V) / sizeof(A)) {
  return {load<V>(p), load<V>(p + step), load<V>(p + 2 * step), load<V>(p + 3 * step)};
}

template <class V, class A>
static inline void store_four(A* p, const Four<V>& v, int64_t step = sizeof(V) / sizeof(A)) {
  store(p, v.a), store(p + step, v.b), store(p + 2 * step, v.c), store(p + 3 * step, v.d);
}

// The sums of the lanes of four vectors, together: half the instructions of one after the other.
template <class V>
static inline auto sum_lanes(const Four<V>& v) {
  constexpr int lanes = sizeof(V) / sizeof(v.a[0]);
  if constexpr (lanes == 2) {
    typedef decltype(v.a[0] + v.a[0]) A;
    return Four<A>{fold(v.a), fold(v.b), fold(v.c), fold(v.d)};
  } else if constexpr (lanes == 4 && sizeof(V) == 16) {
    const V ab = __builtin_shufflevector(v.a, v.b, 0, 4, 1, 5) + __builtin_shufflevector(v.a, v.b, 2, 6, 3, 7);
    const V cd = __builtin_shufflevector(v.c, v.d, 0, 4, 1, 5) + __builtin_shufflevector(v.c, v.d, 2, 6, 3, 7);
    const V all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    return Four<float>{all[0], all[1], all[2], all[3]};
  } else {
    typedef decltype(fold(v.a)) Half;
    return sum_lanes(Four<Half>{fold(v.a), fold(v.b), fold(v.c), fold(v.d)});
  }
}

}  // namespace DK_ISA
}  // namespace dk
