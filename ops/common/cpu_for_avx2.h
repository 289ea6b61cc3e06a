// What follows is compiled for AVX2. Headers whose functions are shared with other files come before.
#include "cpu_variant.h"

#if DK_HAS_AVX
#pragma GCC target("avx2,fma,f16c")
#define DK_ISA avx2
#define DK_BYTES 32
#endif
