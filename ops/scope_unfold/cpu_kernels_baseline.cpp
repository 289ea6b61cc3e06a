// The unfolding kernels for any processor.
#include "cpu_unfold.h"
#include "../common/cpu_for_baseline.h"
#include "cpu_kernels.h"
