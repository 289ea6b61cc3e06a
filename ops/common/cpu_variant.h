// The instruction sets that the CPU kernels are compiled for, and the choice among them. What is compiled for one of
// them stands in a source of its own, cpu_*_avx2.cpp for example, in which the namespace is named after it.
#pragma once

#include <array>

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "dk_bench needs GCC 12 or later, or clang (set CXX)"
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define DK_HAS_AVX 1
#else
#define DK_HAS_AVX 0
#endif

namespace dk {

// 0 baseline, 1 AVX2, 2 AVX-512: the best this processor has, or less if the environment variable DK_BENCH_CPU asks for
// less, which is how they are compared.
int cpu_variant_number();

// Its name: baseline, avx2 or avx512.
const char* cpu_variant();

}  // namespace dk

// Declares a constant of every instruction set, and gives that of the best.
#if DK_HAS_AVX
#define DK_DECLARE_VARIANTS(Type, name)          \
  namespace baseline { extern const Type name; } \
  namespace avx2 { extern const Type name; }     \
  namespace avx512 { extern const Type name; }
#define DK_BEST_VARIANT(name) (*std::array{&baseline::name, &avx2::name, &avx512::name}[cpu_variant_number()])
#else
#define DK_DECLARE_VARIANTS(Type, name) \
  namespace baseline { extern const Type name; }
#define DK_BEST_VARIANT(name) (baseline::name)
#endif
