// Lines of 16-bit numbers for AVX-512.
#include "cpu_lines.h"
#include "cpu_for_avx512.h"
#if DK_HAS_AVX
#include "cpu_line_kernels.h"
#endif
