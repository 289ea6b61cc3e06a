// Lines of 16-bit numbers for AVX2.
#include "cpu_lines.h"
#include "cpu_for_avx2.h"
#if DK_HAS_AVX
#include "cpu_line_kernels.h"
#endif
