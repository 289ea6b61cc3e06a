// Starts a kernel on a stream and raises what goes wrong with that.
#pragma once

#include <string>

#include "../arguments.h"
#include "device.h"

namespace dk {

template <class... P>
void launch(const char* name, void (*kernel)(P...), int64_t blocks_x, int64_t blocks_y, int threads, size_t shared_bytes,
            void* stream, const P&... arguments) {
#if defined(__CUDACC__)
  if (shared_bytes > 48 * 1024) {  // more has to be asked for
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // taken back: the next call of whoever catches this is not to blame
      fail("dk_bench: ", name, " needs ", shared_bytes, " bytes of shared memory: ", cudaGetErrorString(error));
    }
  }
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail("dk_bench: launch of ", name, " failed: ", cudaGetErrorString(error));
#else
  device::run_grid(blocks_x, blocks_y, threads, shared_bytes, [&] { kernel(arguments...); });
#endif
}

}  // namespace dk
