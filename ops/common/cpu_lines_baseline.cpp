// Lines of 16-bit numbers for any processor.
#include "cpu_lines.h"
#include "cpu_for_baseline.h"
#include "cpu_line_kernels.h"
