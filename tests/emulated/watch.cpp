// Finds races of the emulated kernels. The kernels are compiled with -fsanitize=thread, which puts a call before every
// access to memory; the calls come here, not to a sanitizer's library. Two accesses to a word by different threads, of
// which one writes, have to be in order: by a barrier of the block, or of the warp for threads of one; nothing orders
// blocks. Shuffles and products make lanes wait, but order no memory. Shared memory has to be written before it is
// read. A word here has 2 bytes, the least that a kernel stores.
#include <pthread.h>

#include <array>
#include <sstream>
#include <string>
#include <unordered_map>

#include "emulator.h"

namespace dk::device {
namespace {

constexpr size_t kWordBytes = 2;
constexpr int kNobody = -1, kManyInWarp = -2, kMany = -3;

// Who accessed a word, and when: generations of the block's and of the warp's barrier.
struct Access {
  int thread = kNobody, warp = 0;
  int64_t launch_block = 0, block_time = 0, warp_time = 0;
};

struct Word {
  Access written, read;
};

class Races : public Watch {
 public:
  void start_launch(const Block& b) override {
    block_ = &b, number_ = 0, found_.clear(), global_.clear();
    pthread_attr_t attributes;
    void* stack;
    size_t size;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &size);
    pthread_attr_destroy(&attributes);
    stack_ = {static_cast<char*>(stack), static_cast<char*>(stack) + size};
  }

  void start_block(const Block& b) override {
    ++number_, shared_.assign(b.shared.size() / kWordBytes + 1, Word()), running_ = true;
  }

  void end_launch() override {
    running_ = false, block_ = nullptr;
    if (!found_.empty()) throw std::runtime_error("race: " + found_);
  }

  void access(const void* address, size_t size, bool writes) {
    if (!running_ || !block_ || block_->current >= block_->threads) return;  // the emulator's own
    const char* first = static_cast<const char*>(address);
    const char* shared = block_->shared.data();
    if (first >= shared && first < shared + block_->shared.size()) {
      const size_t from = first - shared;
      for (size_t i = from / kWordBytes; i <= (from + size - 1) / kWordBytes; ++i) check(shared_[i], i, true, writes);
    } else if (!is_private(first)) {
      const uintptr_t from = uintptr_t(first);
      for (uintptr_t i = from / kWordBytes; i <= (from + size - 1) / kWordBytes; ++i)
        check(global_[i], i, false, writes);
    }
  }

 private:
  template <class V>
  static bool is_in(const V& v, const char* at) {
    const char* begin = reinterpret_cast<const char*>(v.data());
    return at >= begin && at < begin + v.size() * sizeof(v[0]);
  }

  // What is a thread's own, the host's or the emulator's.
  bool is_private(const char* at) const {
    const Block& b = *block_;
    return (at >= stack_[0] && at < stack_[1]) || is_in(b.stacks, at) || is_in(b.exchange, at) || is_in(b.places, at) ||
        is_in(b.contexts, at) || is_in(b.started, at) || is_in(b.ended, at) || is_in(b.warps, at) ||
        is_in(b.lockstep, at);
  }

  Access now() const {
    const int thread = block_->current, warp = thread / kLanes;
    return {thread, warp, number_, block_->all.generation, block_->warps[warp].generation};
  }

  static bool in_order(const Access& before, const Access& after) {
    if (before.thread == kNobody || (before.launch_block == after.launch_block && before.thread == after.thread))
      return true;
    if (before.launch_block != after.launch_block) return false;
    if (before.block_time < after.block_time) return true;
    return before.thread != kMany && before.warp == after.warp && before.warp_time < after.warp_time;
  }

  void check(Word& word, uintptr_t at, bool shared, bool writes) {
    const Access access = now();
    if (!block_->atomic) {
      if (shared && !writes && word.written.thread == kNobody) report("read before it was written", at, shared, access);
      if (!in_order(word.written, access)) report(writes ? "written by two" : "read while written", at, shared, access);
      if (writes && !in_order(word.read, access)) report("written while read", at, shared, access);
    }
    if (writes) {
      if (!block_->atomic) word.written = access;
    } else if (in_order(word.read, access)) {
      word.read = access;
    } else {
      const bool one_warp =
          word.read.thread != kMany && word.read.launch_block == access.launch_block && word.read.warp == access.warp;
      word.read.thread = one_warp ? kManyInWarp : kMany;
      word.read.warp_time = access.warp_time;
    }
  }

  void report(const char* what, uintptr_t at, bool shared, const Access& access) {
    if (!found_.empty()) return;
    std::ostringstream text;
    text << what << ": " << (shared ? "shared" : "global") << " word " << at << ", block " << number_ - 1 << ", thread "
         << access.thread << ", after " << access.block_time << " barriers";
    found_ = text.str();
  }

  const Block* block_ = nullptr;
  bool running_ = false;
  int64_t number_ = 0;
  std::string found_;
  std::vector<Word> shared_;
  std::unordered_map<uintptr_t, Word> global_;
  std::array<char*, 2> stack_{};
};

Races races;
const bool watching = (watch() = &races);

}  // namespace
}  // namespace dk::device

// What -fsanitize=thread calls.
#define ACCESS(size)                                                                        \
  void __tsan_read##size(void* at) { dk::device::races.access(at, size, false); }           \
  void __tsan_write##size(void* at) { dk::device::races.access(at, size, true); }           \
  void __tsan_unaligned_read##size(void* at) { dk::device::races.access(at, size, false); } \
  void __tsan_unaligned_write##size(void* at) { dk::device::races.access(at, size, true); }
extern "C" {
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) void __tsan_read_range(void* at, unsigned long size) {
  dk::device::races.access(at, size, false);
}
void __tsan_write_range(void* at, unsigned long size) { dk::device::races.access(at, size, true); }
int __tsan_atomic32_fetch_add(int* at, int value, int) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
