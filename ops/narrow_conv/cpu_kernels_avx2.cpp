// The kernels of narrow_conv for AVX2.
#include "cpu_narrow.h"
#include "../common/cpu_for_avx2.h"
#if DK_HAS_AVX
#include "cpu_kernels.h"
#endif
