// See parallel.h.
#include "parallel.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

#include "float_mode.h"

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

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::chrono::duration<double, std::nano>;

constexpr std::chrono::hours kPatience{1};  // wait() itself would ask for a libstdc++ newer than other things here do

constexpr double kSmallCall = 1e6;  // in nanoseconds, like all of these; to wake a whole team may take 100 us
constexpr double kSmallLoop = 40e3;  // what it takes until one thread that slept is at work
constexpr double kLateShare = 8;    // where threads were late, a call with them must be worth that much of the wait
constexpr double kLateMemory = 20;  // and they are tried again after so many times the wait

std::atomic<OpenmpParallel> lent{nullptr};
std::atomic<bool> shared_always{false};

// How long the caller of the last team waited at its end for threads that had nothing to do any more, or had not even
// begun: they were kept from running. Unguarded: any mixture of two calls' numbers is as good as either.
struct Lateness {
  std::atomic<double> wait{0};
  std::atomic<double> forgotten{0};  // when, on Clock

  static double now() { return Nanoseconds(Clock::now().time_since_epoch()).count(); }

  void note(double since) {
    const double end = now();
    wait.store(end - since, std::memory_order_relaxed);
    forgotten.store(end + kLateMemory * (end - since), std::memory_order_relaxed);
  }

  double recent() const {
    const double last = wait.load(std::memory_order_relaxed);
    return kLateShare * last > kSmallCall && now() < forgotten.load(std::memory_order_relaxed) ? last : 0;
  }
} lateness;

// The items of one loop and how far they are.
struct Items {
  int64_t count;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  int helpers = 0;               // others at work on it; guarded by the team's mutex, like
  std::exception_ptr failure{};  // the first exception

  // What every thread does. One that comes late finds nothing to do.
  void work(Control& control) {
    for (int64_t item = next++; item < count && !control.stopped(); item = next++) body(context, item);
  }
};

}  // namespace

class Team {
 public:
  Team(int threads, Control& control) : threads_(threads), control_(control) { control.team_ = this; }
  ~Team() { control_.team_ = nullptr; }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  static Team* of(const Control& control) { return control.team_; }

  // The caller's part of one loop, for which `wanted` others are woken.
  void run(Items& items, int64_t wanted) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      loop_ = &items;
    }
    if (wanted >= threads_ - 1) news_.notify_all();
    else
      for (int64_t t = 0; t < wanted; ++t) news_.notify_one();
    work(items);
    std::unique_lock<std::mutex> lock(mutex_);
    while (items.helpers > 0) {  // polling meanwhile
      left_.wait_for(lock, std::chrono::milliseconds(50));
      lock.unlock();
      control_.stopped();
      lock.lock();
    }
    if (items.failure) std::rethrow_exception(items.failure);
  }

  // What the others do until the call has ended.
  void serve() {
    const DefaultFloats floats;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      while (!loop_ && !over_) news_.wait_for(lock, kPatience);
      if (over_) return;
      Items& items = *loop_;
      ++items.helpers;
      lock.unlock();
      work(items);
      lock.lock();
      if (--items.helpers == 0) left_.notify_one();
    }
  }

  void end() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    news_.notify_all();
  }

 private:
  // Whoever returns from here found no more items, so that nobody need come to this loop any more.
  void work(Items& items) {
    std::exception_ptr thrown;
    try {
      items.work(control_);
    } catch (...) {
      items.next = items.count;
      thrown = std::current_exception();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    loop_ = nullptr;
    if (thrown && !items.failure) items.failure = thrown;
  }

  const int threads_;
  Control& control_;
  std::mutex mutex_;
  std::condition_variable news_, left_;
  Items* loop_ = nullptr;
  bool over_ = false;
};

namespace {

// The caller's part of a call, which ends the team however it ends itself.
struct Call {
  Team& team;
  void (*call)(void*);
  void* context;
  std::thread::id caller = std::this_thread::get_id();
  std::exception_ptr failure{};
  double ended = 0;

  void run() {
    try {
      call(context);
    } catch (...) {
      failure = std::current_exception();
    }
    ended = Lateness::now();
    team.end();
  }
};

// Always with all threads torch has: libgomp ends the workers that a smaller team has no use for and starts them again
// later, and torch's loops would pay for that too.
void run_on_lent_workers(OpenmpParallel openmp, Call& call, int threads) {
  const auto body = [](void* context) {
    auto& own = *static_cast<Call*>(context);
    if (std::this_thread::get_id() == own.caller) own.run();
    else own.team.serve();
  };
  openmp(body, &call, static_cast<unsigned>(threads), 0);
}

void run_on_own_threads(Call& call, int threads) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int t = 1; t < threads; ++t) others.emplace_back([&] { call.team.serve(); });
  } catch (...) {
    // the system gives no more threads, or memory for them: those there are do the work
  }
  call.run();
  for (auto& thread : others) thread.join();
}

}  // namespace

void borrow_workers(OpenmpParallel parallel) {
#ifndef _WIN32
  static const int registered = pthread_atfork(nullptr, nullptr, [] { lent = nullptr; });
  if (registered != 0) return;  // without it a forked child would wait for workers it does not have
#endif
  lent = parallel;
}

int threads_for(double nanoseconds, int threads) {
  const bool worth = nanoseconds >= std::max(kSmallCall, kLateShare * lateness.recent());
  return worth || shared_always.load(std::memory_order_relaxed) ? threads : 1;
}

void always_share(bool always) { shared_always = always; }

void with_team(int threads, Control& control, void (*call)(void*), void* context) {
  const DefaultFloats floats;
  if (threads <= 1) return call(context);
  Team team(threads, control);
  Call own{team, call, context};
  if (const OpenmpParallel openmp = lent) run_on_lent_workers(openmp, own, threads);
  else run_on_own_threads(own, threads);
  lateness.note(own.ended);
  if (own.failure) std::rethrow_exception(own.failure);
}

void parallel_items(int64_t count, int threads, Control& control, void (*body)(void*, int64_t), void* context,
                    double nanoseconds) {
  Items items{count, body, context};
  Team* const team = Team::of(control);
  const int64_t others = std::min<int64_t>(count, threads) - 1;
  const bool worth = nanoseconds >= kSmallLoop || shared_always.load(std::memory_order_relaxed);
  if (team && others > 0 && worth) team->run(items, others);
  else items.work(control);
}

}  // namespace ldreg
