// Functions that the CPU and the CUDA operators share.
#pragma once

#if defined(__CUDACC__)
#define DK_HOST_DEVICE __host__ __device__
#else
#define DK_HOST_DEVICE
#endif
