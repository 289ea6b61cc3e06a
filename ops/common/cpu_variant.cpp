// The choice among the instruction sets, and the operator that tells of it.
#include "cpu_variant.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "arguments.h"
#include "old_glibc.h"

namespace dk {
namespace {

int find_variant() {
#if DK_HAS_AVX
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
#else
  return 0;
#endif
}

std::string chosen_variant() { return cpu_variant(); }

}  // namespace

int cpu_variant_number() {
  static const int chosen = find_variant();
  return chosen;
}

const char* cpu_variant() {
  static constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[cpu_variant_number()];
}

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench, m) {
  // The instruction set the CPU operators use here: baseline, avx2 or avx512.
  m.def("cpu_variant() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dk_bench, CompositeExplicitAutograd, m) { m.impl("cpu_variant", TORCH_BOX(&chosen_variant)); }

}  // namespace dk
