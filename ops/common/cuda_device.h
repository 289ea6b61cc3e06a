// What kernels and those who start them use of the device: threads, barriers, shared memory, tensor cores, launches.
// They are CUDA's, or those of a header that DK_DEVICE_HEADER names.
#pragma once

#if defined(DK_DEVICE_HEADER)
#include DK_DEVICE_HEADER
#else

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arguments.h"

#define DK_KERNEL __global__
#define DK_DEVICE __device__ inline
// What a kernel is compiled for: warps a block at most, and blocks a multiprocessor at least.
#define DK_BOUNDS(warps, blocks) __launch_bounds__(32 * (warps), blocks)

namespace dk::device {

// Warps that an H100 holds at a time, nearly: two blocks of 8 on each of its 132 multiprocessors.
constexpr int64_t kWarps = 2048;

// Read anew each time, so that what follows from it is not kept in registers that inner loops need.
DK_DEVICE int thread() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}
DK_DEVICE int threads() { return blockDim.x; }
DK_DEVICE int64_t block_x() {
  unsigned number;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
  return number;
}
DK_DEVICE int block_y() { return blockIdx.y; }
DK_DEVICE int64_t blocks_x() { return gridDim.x; }
DK_DEVICE void sync_block() { __syncthreads(); }
DK_DEVICE void sync_warp() { __syncwarp(); }
DK_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
template <class T>
DK_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
DK_DEVICE void add_atomic(float* to, float value) { atomicAdd(to, value); }
DK_DEVICE void add_atomic(double* to, double value) { atomicAdd(to, value); }
// Four adjacent values at once, aligned to 16 bytes.
DK_DEVICE void add_atomic(float* to, const float (&values)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "f"(values[0]),
               "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, values[i]);
#endif
}
DK_DEVICE float saturate(float value) { return __saturatef(value); }

// Makes the compiler hold a value rather than compute it again.
DK_DEVICE void hold(float& value) { asm volatile("" : "+f"(value)); }

// Rounded each for itself: never fused into one operation with another.
DK_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DK_DEVICE float difference(float a, float b) { return __fsub_rn(a, b); }
DK_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
DK_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
// What the tensor core reads of an operand.
DK_DEVICE float truncated(float value) { return from_bits(bits_of(value) & 0xffffe000); }
DK_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// 16 bytes at from + index * stride + kOffset bytes, or zeros where `index` is not below `count`; of memory that the
// kernel does not write. Compilers would make a branch of it.
template <int kOffset>
DK_DEVICE void load(uint32_t (&word)[4], const void* from, uint32_t index, uint32_t count, uint32_t stride) {
  const char* at = static_cast<const char*>(from) + uint64_t(index) * stride;
  asm("{\n.reg .pred there;\n"
      "setp.lt.u32 there, %4, %5;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@there ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%6 + %7];\n}"
      : "=&r"(word[0]), "=&r"(word[1]), "=&r"(word[2]), "=&r"(word[3])
      : "r"(index), "r"(count), "l"(__cvta_generic_to_global(at)), "n"(kOffset));
}

// The same of 8 bytes, and of 4.
template <int kOffset>
DK_DEVICE void load(uint32_t (&word)[2], const void* from, uint32_t index, uint32_t count, uint32_t stride) {
  const char* at = static_cast<const char*>(from) + uint64_t(index) * stride;
  asm("{\n.reg .pred there;\n"
      "setp.lt.u32 there, %2, %3;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "@there ld.global.nc.v2.b32 {%0, %1}, [%4 + %5];\n}"
      : "=&r"(word[0]), "=&r"(word[1])
      : "r"(index), "r"(count), "l"(__cvta_generic_to_global(at)), "n"(kOffset));
}

template <int kOffset>
DK_DEVICE void load(uint32_t (&word)[1], const void* from, uint32_t index, uint32_t count, uint32_t stride) {
  const char* at = static_cast<const char*>(from) + uint64_t(index) * stride;
  asm("{\n.reg .pred there;\n"
      "setp.lt.u32 there, %1, %2;\n"
      "mov.b32 %0, 0;\n"
      "@there ld.global.nc.b32 %0, [%3 + %4];\n}"
      : "=&r"(word[0])
      : "r"(index), "r"(count), "l"(__cvta_generic_to_global(at)), "n"(kOffset));
}

// 16 bytes, or 8, to the device's memory, aligned so.
DK_DEVICE void store(void* to, const uint32_t (&word)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word[0]),
               "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

DK_DEVICE void store(void* to, const uint32_t (&word)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word[0]), "r"(word[1])
               : "memory");
}

#if __CUDA_ARCH__ >= 900
// Rounded to 10 bits of mantissa, ties to even.
DK_DEVICE float nearest_tf32(float value) {
  uint32_t bits;
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return from_bits(bits);
}
#endif

// d += a b, see deform_kernel_conv/cuda_tile.h for who holds what.
DK_DEVICE void mma(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// d = a b.
DK_DEVICE void mma_first(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])), "f"(0.0f));
}

// d = c + a b of float16, two values a word.
DK_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

}  // namespace dk::device

namespace dk {

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

// How many blocks of a kernel the device holds at a time. What a kernel computes must not depend on it.
template <class... P>
int64_t resident_blocks(const char* name, void (*kernel)(P...), int threads, size_t shared_bytes) {
  int number = 0, processors = 0, each = 0;
  allow_shared_memory(name, kernel, shared_bytes);
  check(cudaGetDevice(&number), "device", name);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, number), "device", name);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes), "occupancy", name);
  return std::max(1, each * processors);
}

// Starts a kernel on a stream and raises what goes wrong with that.
template <class... P>
void launch(const char* name, void (*kernel)(P...), int64_t blocks_x, int64_t blocks_y, int threads,
            size_t shared_bytes, void* stream, const P&... arguments) {
  allow_shared_memory(name, kernel, shared_bytes);
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), "launch", name);
}

}  // namespace dk

#endif
