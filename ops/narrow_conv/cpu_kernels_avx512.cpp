// The kernels of narrow_conv for AVX-512.
#include "cpu_narrow.h"
#include "../common/cpu_for_avx512.h"
#if DK_HAS_AVX
#include "cpu_kernels.h"
#endif
