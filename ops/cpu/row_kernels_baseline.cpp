// The variant for any processor, and the choice among the variants.
#include <cstdlib>
#include <cstring>

#include "narrow.h"
#include "row.h"

#define DK_ISA baseline
#define DK_BYTES 16
#include "row_kernels.h"

namespace dk {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const RowKernels<float> kFloatAvx2, kFloatAvx512;
extern const RowKernels<double> kDoubleAvx2, kDoubleAvx512;
extern const NarrowKernels kNarrowAvx2, kNarrowAvx512;
extern const LineKernels kLinesAvx2, kLinesAvx512;

// 0 baseline, 1 AVX2, 2 AVX-512: the best this processor has, or less if DK_BENCH_CPU asks for less (for tests).
static int find_variant() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const int best = avx512 ? 2 : avx2 ? 1 : 0;
  const char* asked = std::getenv("DK_BENCH_CPU");
  if (!asked) return best;
  if (!std::strcmp(asked, "baseline")) return 0;
  if (!std::strcmp(asked, "avx2")) return best < 1 ? best : 1;
  if (!std::strcmp(asked, "avx512")) return best;
  fail("DK_BENCH_CPU: expected baseline, avx2 or avx512, got ", asked);
}

static int variant() {
  static const int chosen = find_variant();
  return chosen;
}
#else
static constexpr auto &kFloatAvx2 = baseline::Variant<float>::kernels, &kFloatAvx512 = kFloatAvx2;
static constexpr auto &kNarrowAvx2 = baseline::kNarrow, &kNarrowAvx512 = kNarrowAvx2;
static constexpr auto &kDoubleAvx2 = baseline::Variant<double>::kernels, &kDoubleAvx512 = kDoubleAvx2;
static constexpr auto &kLinesAvx2 = baseline::Lines::kernels, &kLinesAvx512 = kLinesAvx2;

static int variant() { return 0; }
#endif

const char* cpu_variant() {
  static constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[variant()];
}

template <>
const RowKernels<float>& row_kernels<float>() {
  const RowKernels<float>* variants[] = {&baseline::Variant<float>::kernels, &kFloatAvx2, &kFloatAvx512};
  return *variants[variant()];
}

template <>
const RowKernels<double>& row_kernels<double>() {
  const RowKernels<double>* variants[] = {&baseline::Variant<double>::kernels, &kDoubleAvx2, &kDoubleAvx512};
  return *variants[variant()];
}

const NarrowKernels& narrow_kernels() {
  const NarrowKernels* variants[] = {&baseline::kNarrow, &kNarrowAvx2, &kNarrowAvx512};
  return *variants[variant()];
}

const LineKernels& line_kernels() {
  const LineKernels* variants[] = {&baseline::Lines::kernels, &kLinesAvx2, &kLinesAvx512};
  return *variants[variant()];
}

}  // namespace dk
