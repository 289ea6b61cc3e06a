// Starts a kernel on a stream and raises what goes wrong with that.
#pragma once

#include <algorithm>
#include <string>

#include "../arguments.h"
#include "device.h"

namespace dk {

#if defined(__CUDACC__)
inline void check(cudaError_t error, const char* what, const char* name) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // taken back: the next call of whoever catches this is not to blame
  fail("dk_bench: ", what, " of ", name, " failed: ", cudaGetErrorString(error));
}

// More shared memory than 48 KB has to be asked for.
template <class... P>
void allow_shared_memory(const char* name, void (*kernel)(P...), size_t bytes) {
  if (bytes <= 48 * 1024) return;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();  // as above
    fail("dk_bench: ", name, " needs ", bytes, " bytes of shared memory: ", cudaGetErrorString(error));
  }
}
#endif

// How many blocks of a kernel the device holds at a time. What a kernel computes must not depend on it.
template <class... P>
int64_t resident_blocks(const char* name, void (*kernel)(P...), int threads, size_t shared_bytes) {
#if defined(__CUDACC__)
  int number = 0, processors = 0, each = 0;
  allow_shared_memory(name, kernel, shared_bytes);
  check(cudaGetDevice(&number), "device", name);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, number), "device", name);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes), "occupancy", name);
  return std::max(1, each * processors);
#else
  (void)name, (void)kernel, (void)threads, (void)shared_bytes;
  return device::resident_blocks();
#endif
}

template <class... P>
void launch(const char* name, void (*kernel)(P...), int64_t blocks_x, int64_t blocks_y, int threads, size_t shared_bytes,
            void* stream, const P&... arguments) {
#if defined(__CUDACC__)
  allow_shared_memory(name, kernel, shared_bytes);
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), "launch", name);
#else
  device::run_grid(blocks_x, blocks_y, threads, shared_bytes, [&] { kernel(arguments...); });
#endif
}

}  // namespace dk
