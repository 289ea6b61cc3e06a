// The row kernels for AVX2.
#include "cpu_row.h"
#include "../common/cpu_for_avx2.h"
#if DK_HAS_AVX
#include "cpu_row_kernels.h"
#endif
