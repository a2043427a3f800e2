// See parallel.h.
#include "parallel.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <vector>

namespace ldreg {

bool Control::stopped() {
  if (poll && !stop_.load(std::memory_order_relaxed) && std::this_thread::get_id() == owner_) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_poll_) {
      next_poll_ = now + std::chrono::milliseconds(50);
      if (poll(poll_argument)) stop_.store(true, std::memory_order_relaxed);
    }
  }
  return stop_.load(std::memory_order_relaxed);
}

void parallel_items(int64_t items, int threads, Control& control, void (*body)(void*, int64_t), void* context) {
  const int workers = static_cast<int>(std::min<int64_t>(threads, items));
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable done;
  std::exception_ptr failure;
  int running = 0;

  auto work = [&] {
    try {
      for (int64_t item = next++; item < items && !control.stopped(); item = next++) body(context, item);
    } catch (...) {
      next = items;
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(std::max(workers - 1, 0));
  for (int t = 1; t < workers; ++t) {
    std::lock_guard<std::mutex> lock(mutex);
    try {
      pool.emplace_back([&] {
        work();
        std::lock_guard<std::mutex> lock(mutex);
        if (--running == 0) done.notify_one();
      });
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: those there are do the work
    }
    ++running;
  }
  work();
  {  // the caller keeps polling while the others finish
    std::unique_lock<std::mutex> lock(mutex);
    while (running > 0) {
      done.wait_for(lock, std::chrono::milliseconds(50));
      lock.unlock();
      control.stopped();
      lock.lock();
    }
  }
  for (auto& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace ldreg
