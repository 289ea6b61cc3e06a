// A GPU on the host, in place of ops/common/cuda_device.h's CUDA: every thread of a block is a coroutine, barriers and
// warp operations make them wait for each other. One block runs at a time. A watch, if there is one, is told of
// launches and blocks; watch.cpp finds races with that.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#define DK_KERNEL static
#define DK_DEVICE inline
#define DK_BOUNDS(warps, blocks)
// Of what touches the emulator's own memory and a thread's alone: a watch that is told of it takes twice as long.
#define DK_UNWATCHED __attribute__((no_sanitize("thread"))) inline

namespace dk::device {

constexpr int64_t kWarps = 32;  // few: tests have few positions
constexpr int kLanes = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr int kShown = 12;  // values that a thread shows the others of its warp: at most 8 + 4 halves of mma's operands

struct Barrier {
  int size = 0, arrived = 0;
  int64_t generation = 0;
};

struct Block {
  int64_t x = 0, blocks_x = 0;
  int y = 0, threads = 0, current = 0, running = 0;
  volatile bool atomic = false;  // whether the current thread is in an atomic operation
  bool moved = false;  // whether any thread got on since the last round; if none did, they wait for each other forever
  std::vector<char> shared;
  // A coroutine starts by setcontext; after that _setjmp and _longjmp switch, which spare two system calls a time.
  std::vector<ucontext_t> contexts;
  std::vector<char> stacks, started, ended;
  struct Place {
    jmp_buf here;
  };
  std::vector<Place> places;
  Place scheduler;
  Barrier all;
  std::vector<Barrier> warps, lockstep;  // what orders memory, and what only makes lanes wait for each other's values
  std::vector<float> exchange;           // what threads show the others of their warp
  std::function<void()> kernel;
};

DK_UNWATCHED Block*& block() {
  static thread_local Block* current = nullptr;
  return current;
}

DK_UNWATCHED int thread() { return block()->current; }
DK_UNWATCHED int threads() { return block()->threads; }
DK_UNWATCHED int64_t block_x() { return block()->x; }
DK_UNWATCHED int block_y() { return block()->y; }
DK_UNWATCHED int64_t blocks_x() { return block()->blocks_x; }
DK_UNWATCHED char* shared_memory() { return block()->shared.data(); }

struct Watch {
  virtual void start_launch(const Block& b) = 0;
  virtual void start_block(const Block& b) = 0;
  virtual void end_launch() = 0;  // throws if it has found something
};

inline Watch*& watch() {
  static Watch* current = nullptr;
  return current;
}

DK_UNWATCHED void yield() {
  Block& b = *block();
  if (!_setjmp(b.places[b.current].here)) _longjmp(b.scheduler.here, 1);
}

DK_UNWATCHED void wait(Barrier& barrier) {
  Block& b = *block();
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0, ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
  b.moved = true;
}

DK_UNWATCHED void sync_block() { wait(block()->all); }
DK_UNWATCHED void sync_warp() { wait(block()->warps[thread() / kLanes]); }
DK_UNWATCHED void exchange() { wait(block()->lockstep[thread() / kLanes]); }

template <class T>
DK_UNWATCHED T shuffle_xor(T value, int mask) {
  float* shown = &block()->exchange[0];
  std::memcpy(shown + thread() * kShown, &value, sizeof value);
  exchange();
  T result;
  std::memcpy(&result, shown + (thread() ^ mask) * kShown, sizeof result);
  exchange();
  return result;
}

template <class T>
inline void add_atomic(T* to, T value) {
  block()->atomic = true;
  *to += value;
  block()->atomic = false;
}
inline void add_atomic(float* to, const float (&values)[4]) {
  for (int i = 0; i < 4; ++i) add_atomic(to + i, values[i]);
}
inline float saturate(float value) { return value > 0 ? std::min(value, 1.0f) : 0.0f; }  // NaN gives 0, as on the GPU

inline void hold(float&) {}

inline float product(float a, float b) {
  volatile float result = a * b;
  return result;
}

inline float difference(float a, float b) {
  volatile float result = a - b;
  return result;
}

DK_UNWATCHED uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

DK_UNWATCHED float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }

template <int kOffset, int kWords>
inline void load(uint32_t (&word)[kWords], const void* from, uint32_t index, uint32_t count, uint32_t stride) {
  std::memset(word, 0, sizeof(word));
  if (index < count)
    std::memcpy(word, static_cast<const char*>(from) + uint64_t(index) * stride + kOffset, sizeof(word));
}

template <int kWords>
inline void store(void* to, const uint32_t (&word)[kWords]) {
  std::memcpy(to, word, sizeof(word));
}

// What the tensor core reads of an operand.
DK_UNWATCHED float truncated(float value) { return from_bits(bits_of(value) & 0xffffe000); }

// A sum as the tensor core leaves it: rounded towards zero, not to nearest (Fasi et al., Numerical behavior of NVIDIA
// tensor cores, 2021), so that the errors of a long sum add up instead of cancelling.
DK_UNWATCHED float towards_zero(double sum) {
  const float nearest = static_cast<float>(sum);
  return std::abs(static_cast<double>(nearest)) > std::abs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// The layout is PTX's for mma.m16n8k8 with tf32 operands, written out once more: cuda_tile.h must agree with it.
DK_UNWATCHED void mma(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  const int lane = thread() % kLanes, first = thread() - lane;
  float* shown = &block()->exchange[first * kShown];
  for (int i = 0; i < 4; ++i) shown[lane * kShown + i] = truncated(a[i]);
  for (int i = 0; i < 2; ++i) shown[lane * kShown + 4 + i] = truncated(b[i]);
  exchange();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < 8; ++k) {
      const float left = shown[(row % 8 * 4 + k % 4) * kShown + row / 8 + k / 4 * 2];
      const float right = shown[(column * 4 + k % 4) * kShown + 4 + k / 4];
      sum += static_cast<double>(left) * right;
    }
    d[i] = towards_zero(sum);
  }
  exchange();
}

DK_UNWATCHED void mma_first(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  for (float& value : d) value = 0;
  mma(d, a, b);
}

// The float16 in half `which` of a word: 5 bits of exponent, 10 of mantissa.
DK_UNWATCHED float half_of(uint32_t word, int which) {
  const uint32_t half = word >> (16 * which) & 0xffff;
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float value = std::ldexp(float(exponent ? mantissa + 1024 : mantissa), std::max(exponent, 1) - 25);
  if (exponent == 31)
    value = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  return half >> 15 ? -value : value;
}

// PTX's layout for mma.m16n8k16 with float16 operands: with g = lane / 4 and t = lane % 4, a_i is at row g for i in 0,
// 1, 4, 5 and g + 8 else, column 2t + i % 2 and 8 more from a_4 on; b_i at row 2t + i % 2 and 8 more from b_2 on,
// column g. Two a word.
DK_UNWATCHED void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  const int lane = thread() % kLanes, first = thread() - lane;
  float* shown = &block()->exchange[first * kShown];
  for (int i = 0; i < 8; ++i) shown[lane * kShown + i] = half_of(a[i / 2], i % 2);
  for (int i = 0; i < 4; ++i) shown[lane * kShown + 8 + i] = half_of(b[i / 2], i % 2);
  exchange();
  float result[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int upper = k / 8, of_group = k % 8 / 2;
      const float left = shown[(row % 8 * 4 + of_group) * kShown + 4 * upper + row / 8 * 2 + k % 2];
      const float right = shown[(column * 4 + of_group) * kShown + 8 + 2 * upper + k % 2];
      sum += static_cast<double>(left) * right;
    }
    result[i] = towards_zero(sum);
  }
  exchange();
  for (int i = 0; i < 4; ++i) d[i] = result[i];
}

inline void start_thread() {
  Block& b = *block();
  b.kernel();
  b.ended[b.current] = 1, --b.running, b.moved = true;
  _longjmp(b.scheduler.here, 1);
}

inline void resume(Block& b) {
  if (_setjmp(b.scheduler.here)) return;  // the thread waits, or has ended
  if (b.started[b.current]) _longjmp(b.places[b.current].here, 1);
  b.started[b.current] = 1;
  setcontext(&b.contexts[b.current]);
}

inline void run_block(Block& b) {
  block() = &b;
  // Shared memory starts as NaN: what is read before it was written shows.
  for (size_t i = 0; i + 4 <= b.shared.size(); i += 4) std::memset(&b.shared[i], 0xff, 4);
  std::fill(b.ended.begin(), b.ended.end(), 0), std::fill(b.started.begin(), b.started.end(), 0);
  b.running = b.threads, b.all = {b.threads, 0, 0};
  b.warps.assign((b.threads + kLanes - 1) / kLanes, Barrier{kLanes, 0, 0});
  b.lockstep = b.warps;
  if (watch()) watch()->start_block(b);
  for (int i = 0; i < b.threads; ++i) {
    getcontext(&b.contexts[i]);
    b.contexts[i].uc_stack.ss_sp = &b.stacks[i * kStackBytes], b.contexts[i].uc_stack.ss_size = kStackBytes;
    b.contexts[i].uc_link = nullptr;  // start_thread does not return
    makecontext(&b.contexts[i], start_thread, 0);
  }
  while (b.running > 0) {
    b.moved = false;
    for (b.current = 0; b.current < b.threads; ++b.current)
      if (!b.ended[b.current]) resume(b);
    if (!b.moved && b.running > 0) throw std::runtime_error("emulator: the threads of a block wait for each other");
  }
}

// How many blocks the device is said to hold at a time.
inline int64_t& resident_blocks() {
  static int64_t count = 2;
  return count;
}

// What the smallest of the GPUs we build for, sm_86, takes.
constexpr size_t kMostShared = 99 * 1024;

template <class F>
void run_grid(int64_t blocks_x, int64_t blocks_y, int threads, size_t shared_bytes, const F& kernel) {
  if (blocks_x < 1 || blocks_x > INT32_MAX || blocks_y < 1 || blocks_y > 65535 || threads > 1024 ||
      shared_bytes > kMostShared)
    throw std::runtime_error("emulator: no GPU takes this launch");
  Block b;
  b.threads = threads, b.blocks_x = blocks_x;
  b.shared.resize(shared_bytes + 16), b.contexts.resize(threads), b.ended.resize(threads), b.started.resize(threads),
      b.places.resize(threads);
  b.stacks.resize(threads * kStackBytes), b.exchange.resize(threads * kShown);
  b.kernel = kernel;
  if (watch()) watch()->start_launch(b);
  for (b.y = 0; b.y < int(blocks_y); ++b.y)
    for (b.x = 0; b.x < blocks_x; ++b.x) run_block(b);
  if (watch()) watch()->end_launch();
}

}  // namespace dk::device

namespace dk {

template <class... P>
int64_t resident_blocks(const char*, void (*)(P...), int, size_t) {
  return device::resident_blocks();
}

template <class... P>
void launch(const char*, void (*kernel)(P...), int64_t blocks_x, int64_t blocks_y, int threads, size_t shared_bytes,
            void*, const P&... arguments) {
  device::run_grid(blocks_x, blocks_y, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace dk
