// The emulated operators as dk_bench_watched, dk_bench_watched_per_image and dk_bench_watched_unfold, for the watch,
// and a kernel with races for it to find.
#define DK_LIBRARY dk_bench_watched
#include "operator.cpp"
#define DK_PER_IMAGE_LIBRARY dk_bench_watched_per_image
#include "per_image.cpp"
#define DK_UNFOLD_LIBRARY dk_bench_watched_unfold
#include "unfold.cpp"

namespace dk {
namespace {

struct Faulty {
  int fault;
  float* result;
};

// Without a fault: every thread writes a word, and reads that of the lane before and that of the other warp.
DK_KERNEL void faulty(const Faulty a) {
  float* words = reinterpret_cast<float*>(device::shared_memory());
  const int thread = device::thread(), threads = device::threads();
  if (a.fault != 1 || thread != 3) words[thread] = 1.0f;
  if (a.fault != 2) device::sync_warp();
  float sum = words[thread % 32 ? thread - 1 : thread];
  if (a.fault != 3) device::sync_block();
  sum += words[(thread + 32) % threads];
  sum = device::shuffle_xor(sum, 1);  // orders nothing
  if (a.fault != 4) device::sync_block();
  words[thread] = sum;
  if (a.fault == 5 || thread == 0) a.result[a.fault == 6 ? 0 : device::block_x()] = sum;
}

void run_faulty(int64_t fault, Tensor result) {
  launch("faulty", faulty, result.numel(), 1, 64, 64 * sizeof(float), nullptr,
         Faulty{int(fault), static_cast<float*>(result.data_ptr())});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dk_bench_watched, m) { m.def("faulty(int fault, Tensor(a!) result) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(dk_bench_watched, CPU, m) { m.impl("faulty", TORCH_BOX(&run_faulty)); }

}  // namespace dk
