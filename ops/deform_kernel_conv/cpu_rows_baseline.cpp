// The row kernels for any processor.
#include "cpu_row.h"
#include "../common/cpu_for_baseline.h"
#include "cpu_row_kernels.h"
