// The unfolding kernels for AVX2.
#include "cpu_unfold.h"
#include "../common/cpu_for_avx2.h"
#if DK_HAS_AVX
#include "cpu_kernels.h"
#endif
