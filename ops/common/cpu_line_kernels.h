// Lines of 16-bit numbers to float and back, rounded to the nearest even, for one instruction set (see cpu_vectors.h).
#include "cpu_lines.h"

namespace dk {
namespace DK_ISA {

static void from_bfloat16(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = uint32_t(from[i]) << 16;
    __builtin_memcpy(to + i, &bits, sizeof(bits));
  }
}

static void to_bfloat16(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, from + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

#if DK_BYTES >= 32
// Eight at a time; what is left over goes through a buffer of eight.
static inline void eight_from_half(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

static inline void eight_to_half(const float* from, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}

static void from_half(const uint16_t* from, float* to, int64_t n) {
  for (; n >= 8; n -= 8, from += 8, to += 8) eight_from_half(from, to);
  uint16_t rest[8] = {};
  float wide[8];
  __builtin_memcpy(rest, from, n * sizeof(uint16_t));
  eight_from_half(rest, wide);
  __builtin_memcpy(to, wide, n * sizeof(float));
}

static void to_half(const float* from, uint16_t* to, int64_t n) {
  for (; n >= 8; n -= 8, from += 8, to += 8) eight_to_half(from, to);
  float rest[8] = {};
  uint16_t narrow[8];
  __builtin_memcpy(rest, from, n * sizeof(float));
  eight_to_half(rest, narrow);
  __builtin_memcpy(to, narrow, n * sizeof(uint16_t));
}
#else  // left to PyTorch's conversion of one number
constexpr void (*from_half)(const uint16_t*, float*, int64_t) = nullptr;
constexpr void (*to_half)(const float*, uint16_t*, int64_t) = nullptr;
#endif

const LineKernels kLines = {from_bfloat16, to_bfloat16, from_half, to_half};

}  // namespace DK_ISA
}  // namespace dk
