// The unfolding kernels for AVX-512.
#include "cpu_unfold.h"
#include "../common/cpu_for_avx512.h"
#if DK_HAS_AVX
#include "cpu_kernels.h"
#endif
