// Threads for one call, able to stop early: torch's own OpenMP workers if they were lent, else threads that are started and
// joined within the call.
//
// After each of its parallel loops an OpenMP runtime lets its workers spin for some milliseconds, in case the next loop
// comes soon. Threads of ours would share the processors with them; borrowed workers start at once instead. A forked
// child does not inherit workers, so it starts threads.
//
// The caller's thread works too, and now and then runs `poll` (the binding looks for Ctrl-C there). A `true` from it
// makes `stopped()` true for everyone; long loops ask it once per tile. It does not schedule nested parallelism.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace ldreg {

struct Control {
  bool (*poll)(void*) = nullptr;
  void* poll_argument = nullptr;

  bool stopped();  // cheap; call about once per tile of work

 private:
  std::atomic<bool> stop_{false};
  std::thread::id owner_ = std::this_thread::get_id();
  std::chrono::steady_clock::time_point next_poll_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
};

// body(context, item) for every item in [0, items), over at most `threads` threads, in no particular order. An exception
// in any of them is rethrown here after all have ended.
void parallel_items(int64_t items, int threads, Control& control, void (*body)(void*, int64_t), void* context);

// The entry point of an OpenMP runtime that `#pragma omp parallel` calls under GCC's ABI, which LLVM's and Intel's
// runtimes have too: fn(data) on `threads` threads, the caller among them, until all have returned.
using OpenmpParallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

// Run every later call on that runtime's workers; nullptr for threads of our own.
void borrow_workers(OpenmpParallel parallel);

}  // namespace ldreg
