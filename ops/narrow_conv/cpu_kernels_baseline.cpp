// The kernels of narrow_conv for any processor.
#include "cpu_narrow.h"
#include "../common/cpu_for_baseline.h"
#include "cpu_kernels.h"
