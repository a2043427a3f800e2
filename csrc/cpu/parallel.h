// The threads of one call, able to stop early: torch's own OpenMP workers if they were lent, else threads that are started
// and joined with the call.
//
// After each of its parallel loops an OpenMP runtime lets its workers spin for some milliseconds, in case the next loop
// comes soon. Threads of ours would share the processors with them; borrowed workers start at once instead. A forked
// child does not inherit workers, so it starts threads.
//
// A runtime's loop ends when all its workers have come to the end, also one that another program keeps from running. So a
// call is one such loop, not one for each of ours: in it the caller's thread goes through the call, and the others sleep
// until there are items to share. Nobody waits for a thread that has not begun an item, and nobody spins.
//
// The caller's thread works too, and now and then runs `poll` (the binding looks for Ctrl-C there). A `true` from it
// makes `stopped()` true for everyone; long loops ask it once per tile. It does not schedule nested parallelism.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <thread>

namespace ldreg {

class Team;

struct Control {
  bool (*poll)(void*) = nullptr;
  void* poll_argument = nullptr;

  bool stopped();  // cheap; call about once per tile of work

 private:
  friend class Team;
  std::atomic<bool> stop_{false};
  std::thread::id owner_ = std::this_thread::get_id();
  std::chrono::steady_clock::time_point next_poll_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  Team* team_ = nullptr;
};

// How many of `threads` a call should have that takes so many nanoseconds on one: 1 where others would not be worth their
// waking, or were late to the last call because other programs want the processors. Results never depend on it.
int threads_for(double nanoseconds, int threads);

// All of them, and for every loop too, however small: for tests.
void always_share(bool always);

// call(context) on this thread, with up to `threads - 1` others at hand for every parallel_items in it. All of them
// compute in the default floating-point mode (float_mode.h).
void with_team(int threads, Control& control, void (*call)(void*), void* context);

// body(context, item) for every item in [0, items), over at most `threads` threads of the call, in no particular order.
// An exception in any of them is rethrown here after all have ended. `nanoseconds` is a guess at what all items take
// together: to wake others costs more than a few microseconds of work.
void parallel_items(int64_t items, int threads, Control& control, void (*body)(void*, int64_t), void* context,
                    double nanoseconds = std::numeric_limits<double>::infinity());

// The entry point of an OpenMP runtime that `#pragma omp parallel` calls under GCC's ABI, which LLVM's and Intel's
// runtimes have too: fn(data) on `threads` threads, the caller among them, until all have returned.
using OpenmpParallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

// Run every later call on that runtime's workers; nullptr for threads of our own.
void borrow_workers(OpenmpParallel parallel);

}  // namespace ldreg
