// A machine that runs CUDA device code on a processor: each CUDA thread is a fiber, all on the calling OS thread.
//
// Tests compile kernels with a host compiler against include/cuda_runtime.h and run them here, in thread order or in a
// pseudo-random order. Broken rules of barriers, warp collectives and shared memory are errors that name the thread.
// Between two switch points (see Launch::seed) a thread runs alone, so what the machine does not show is a race of
// plain loads and stores that no order of whole stretches reveals, nor anything about weak memory order or speed.
//
// Not reentrant, and one launch at a time in the process. Fibers that an error leaves behind are not unwound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the running thread; the machine sets them at every switch. y and z are always 0 and 1.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

struct Launch {
  unsigned grid = 1;        // blocks
  unsigned block = 32;      // threads of each, at most 1024
  size_t shared_bytes = 0;  // dynamic shared memory of each
  unsigned resident = 2;    // blocks that run at the same time, the others start in order as these end; 0: all
  // 0: warps in turn, lanes in order, each until it has to wait. Otherwise a pseudo-random order, and threads are also
  // interrupted at atomics, barriers and fences.
  uint64_t seed = 0;
};

struct Options {
  size_t stack_bytes = 64 << 10;     // of each thread; below it is a page that faults when touched
  uint64_t stall_limit = 10000000;   // yields and collectives without progress (below) until a launch counts as stuck
  unsigned preempt_one_in = 8;       // with a seed: chance of an interruption at each switch point; 0: never
};
Options& options();

// Runs kernel() once per thread. Rethrows what a thread threw; std::runtime_error for broken rules and deadlock.
void launch(const Launch&, const std::function<void()>& kernel);

// Of the current block, 1024-byte aligned. Bytes are 0xFF, so floats are NaN, when a block starts.
char* shared_memory();
size_t shared_bytes();

// bar.sync id, count: waits until `count` threads of the block, a multiple of 32 or all of them, have called it.
void barrier(int id, int count);

// bar.arrive id, count: counts as a call of barrier(), but does not wait.
void barrier_arrive(int id, int count);

// Lets other threads run; for loops that wait for memory to change.
void yield();

// What emulated hardware keeps of a block besides its shared memory, from the first use to the block's end.
struct BlockState {
  virtual ~BlockState() = default;
  // What was still under way when the last thread ended, which is an error, or nullptr.
  virtual const char* unfinished() const = 0;
};
template <class State>
State& block_state();

// What cuda_runtime.h is written with.
namespace detail {

enum class Collective : unsigned {
  syncwarp, shfl, shfl_up, shfl_down, shfl_xor, ballot, any, all,
  reduce_add, reduce_min, reduce_max, reduce_and, reduce_or, reduce_xor
};
enum class Type : unsigned { none, i32, u32, i64, u64, f32, f64 };

// Meets the other lanes of `mask` and returns this lane's result, bits in and out. `argument` is the lane, delta or
// lane mask of a shuffle.
uint64_t collective(Collective op, Type type, unsigned mask, uint64_t value, int argument = 0, int width = 32);

[[noreturn]] void trap(const char* what);
void maybe_preempt();

uint32_t random();  // by the launch's seed, also if that is 0
std::unique_ptr<BlockState>& block_state(const void* key);

extern bool random_order;     // the launch has a seed
extern uint64_t stalled;      // yields and collectives since progress
extern unsigned polls;        // reads that may be a wait for memory, since the last one that was made a yield
constexpr unsigned kPollLimit = 64;

// Progress is an atomic that changes memory, a barrier that opens, or a thread that ends.
inline void progress() { stalled = 0; }

inline void switch_point() {
  if (random_order) maybe_preempt();
}

// Loops that wait with atomics or uncached loads alone would never end if nobody else could run.
inline void poll() {
  if (++polls < kPollLimit) return;
  polls = 0;
  yield();
}

template <class T, class Next>
T atomic(T* address, Next next) {
  switch_point();
  const T old = *static_cast<volatile T*>(address);
  const T now = next(old);
  *static_cast<volatile T*>(address) = now;
  if (std::memcmp(&old, &now, sizeof(T))) progress();
  else poll();
  switch_point();
  return old;
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "lanes exchange 8-byte slots");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace detail

template <class State>
State& block_state() {
  static const char key = 0;
  auto& state = detail::block_state(&key);
  if (!state) state = std::make_unique<State>();
  return static_cast<State&>(*state);
}

}  // namespace simt
