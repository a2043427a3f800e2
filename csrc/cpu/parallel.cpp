// See parallel.h.
#include "parallel.h"

#ifndef _WIN32
#include <pthread.h>
#endif

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

namespace {

std::atomic<OpenmpParallel> lent{nullptr};

// The items of one call and how far they are.
struct Items {
  int64_t count;
  Control& control;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  std::mutex mutex{};
  std::condition_variable left{};
  int working = 0;
  std::exception_ptr failure{};

  // What every thread does. One that comes late finds nothing to do.
  void work() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      ++working;
    }
    std::exception_ptr thrown;
    try {
      for (int64_t item = next++; item < count && !control.stopped(); item = next++) body(context, item);
    } catch (...) {
      next = count;
      thrown = std::current_exception();
    }
    std::lock_guard<std::mutex> lock(mutex);
    if (thrown && !failure) failure = thrown;
    if (--working == 0) left.notify_all();
  }

  // And the caller after that: wait for the others, polling.
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    while (working > 0) {
      left.wait_for(lock, std::chrono::milliseconds(50));
      lock.unlock();
      control.stopped();
      lock.lock();
    }
  }
};

// Always with the full team, also for a few items: libgomp ends the workers that a smaller team has no use for and starts
// them again later, and torch's loops would pay for that too.
void run_on_lent_workers(OpenmpParallel openmp, Items& items, int threads) {
  struct Call {
    Items& items;
    std::thread::id caller = std::this_thread::get_id();
  } call{items};
  const auto body = [](void* context) {
    auto& own = *static_cast<Call*>(context);
    own.items.work();
    if (std::this_thread::get_id() == own.caller) own.items.wait();
  };
  openmp(body, &call, static_cast<unsigned>(threads), 0);
}

void run_on_own_threads(Items& items, int workers) {
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  try {
    for (int t = 1; t < workers; ++t) pool.emplace_back([&] { items.work(); });
  } catch (const std::system_error&) {
    // the system gives no more threads: those there are do the work
  }
  items.work();
  items.wait();
  for (auto& thread : pool) thread.join();
}

}  // namespace

void borrow_workers(OpenmpParallel parallel) {
#ifndef _WIN32
  static const int registered = pthread_atfork(nullptr, nullptr, [] { lent = nullptr; });
  if (registered != 0) return;  // without it a forked child would wait for workers it does not have
#endif
  lent = parallel;
}

void parallel_items(int64_t count, int threads, Control& control, void (*body)(void*, int64_t), void* context) {
  Items items{count, control, body, context};
  const int workers = static_cast<int>(std::min<int64_t>(threads, count));
  const OpenmpParallel openmp = lent;
  if (workers <= 1)
    items.work();
  else if (openmp)
    run_on_lent_workers(openmp, items, threads);
  else
    run_on_own_threads(items, workers);
  if (items.failure) std::rethrow_exception(items.failure);
}

}  // namespace ldreg
