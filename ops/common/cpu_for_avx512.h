// What follows is compiled for AVX-512. Headers whose functions are shared with other files come before.
#include "cpu_variant.h"

#if DK_HAS_AVX
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512")
#define DK_ISA avx512
#define DK_BYTES 64
#endif
