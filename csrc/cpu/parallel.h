// Threads for one call: started, used and joined within it (so a fork between calls is harmless), able to stop early.
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

}  // namespace ldreg
