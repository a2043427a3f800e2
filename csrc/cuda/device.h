// What device code stands on: shared memory, barriers, counters between blocks, warp sums, numbers as ordered bits.
//
// Contract: everything that nvcc spells in PTX is here, in mainloop_mma.h or in hopper.h; all other headers are plain C++
// over CUDA's built-in names. So they also compile for the host, where python_tests/simt runs every thread as a fiber
// (LDREG_SIMT), and the tests execute them without a GPU. Blocks talk through counters in global memory that only grow
// during a launch: `signal` publishes everything the block has written, `wait_for` sees it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../topk.h"

namespace ldreg::cuda {

constexpr int kWarp = 32;
constexpr int kTeam = 128;  // threads that work on one query together, at most
constexpr unsigned kAllLanes = 0xffffffffu;

// The thread's number, read where it is used. Compilers take whatever depends on it alone out of every loop of a kernel at
// once, and then have no registers left for any of them.
__device__ inline int thread_id() {
#if defined(LDREG_SIMT)
  return int(threadIdx.x);
#else
  int id;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
  return id;
#endif
}

__device__ inline int lane_id() { return thread_id() % kWarp; }
__device__ inline int warp_id() { return thread_id() / kWarp; }

// ---------------------------------------------------------------------------------- shared memory and barriers

__device__ inline char* shared_memory() {
#if defined(LDREG_SIMT)
  return simt::shared_memory();
#else
  extern __shared__ __align__(1024) char memory[];
  return memory;
#endif
}

// An object at an offset into shared memory. Functions pass offsets on: of a pointer the compiler would no longer know
// where it points.
template <class Item>
__device__ inline Item* shared_at(int offset) {
  return reinterpret_cast<Item*>(shared_memory() + offset);
}

// The same for a pointer to global memory that comes out of a struct.
template <class Item>
__device__ inline Item* global(Item* p) {
#if !defined(LDREG_SIMT)
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}

// Barrier among the `threads` threads that name the same `id` (1 to 15; 0 is __syncthreads).
__device__ inline void named_barrier(int id, int threads) {
#if defined(LDREG_SIMT)
  simt::barrier(id, threads);
#else
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");  // also for warps that have diverged
#endif
}

// ---------------------------------------------------------------------------------- between blocks

// Everything before it, everywhere on the device, comes before everything after it.
__device__ inline void device_fence() {
#if defined(LDREG_SIMT)
  __threadfence();
#else
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

__device__ inline unsigned load_relaxed(const unsigned* counter) {
#if defined(LDREG_SIMT)
  return *counter;
#else
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
#endif
}

#if defined(LDREG_WATCHDOG) && !defined(LDREG_SIMT)
#define LDREG_WATCHES 1
#else
#define LDREG_WATCHES 0
#endif

#if LDREG_WATCHES
constexpr unsigned long long kPatience = 5'000'000'000;  // nanoseconds: the longest launch of the tests takes a tenth

static __device__ void report_hang(const void* waited_for, unsigned wanted);  // watchdog.h; does not return
#endif

// In every wait: nothing, or in a build with LDREG_WATCHDOG=1 a limit to it.
class Watchdog {
 public:
#if LDREG_WATCHES
  __device__ void look(const void* waited_for, unsigned wanted) const {
    if (now() - since_ > kPatience) report_hang(waited_for, wanted);
  }

 private:
  static __device__ unsigned long long now() {
    unsigned long long nanoseconds;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
    return nanoseconds;
  }
  unsigned long long since_ = now();
#else
  __device__ void look(const void*, unsigned) const {}
#endif
};

// By one thread, which passes what it sees on to others through a barrier. The fence comes once, not with every look: it
// empties the cache that other warps are reading through.
__device__ inline void wait_for(const unsigned* counter, unsigned value) {
  const Watchdog watchdog;
  while (load_relaxed(counter) < value) {
    watchdog.look(counter, value);
#if defined(LDREG_SIMT)
    simt::yield();
#else
    __nanosleep(100);
#endif
  }
  device_fence();
}

// By one thread, after a barrier behind the writes of all.
__device__ inline void signal(unsigned* counter, unsigned arrivals = 1) {
  device_fence();
  atomicAdd(counter, arrivals);
}

// Whether every row can come by the copy engine (cp.async.bulk), whatever the tile stage.
#if !defined(LDREG_SIMT) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kBulkCopies = true;
#else
constexpr bool kBulkCopies = false;
#endif

// By every thread that wrote to global memory what another block's copy engine (TMA) is going to read; before a barrier.
__device__ inline void publish_to_copies() {
#if !defined(LDREG_SIMT) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

// v, as if it were not known before.
__device__ inline int opaque(int v) {
#if !defined(LDREG_SIMT)
  asm volatile("mov.b32 %0, %0;" : "+r"(v));
#endif
  return v;
}

// a - 2 b in one instruction, which no compiler takes apart to compute 2 b beforehand.
__device__ inline float minus_twice(float a, float b) {
#if defined(LDREG_SIMT)
  return a - 2 * b;  // one rounding too, 2 b being exact; fmaf is slow where it is no instruction
#else
  return fmaf(-2.0f, b, a);
#endif
}

// No memory access moves across this: loads for later would take the registers of what is going on now.
__device__ inline void keep_order() { asm volatile("" ::: "memory"); }

// ---------------------------------------------------------------------------------- warp sums

template <class Real>
__device__ inline Real warp_sum(Real v) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(kAllLanes, v, lanes);
  return v;
}

// Sums over the warp of kCount numbers, a power of two: that of number l % kCount to lane l. Lanes give half of their numbers
// away for each they get, so all together take little longer than one.
template <int kCount>
__device__ inline double warp_sums(double (&v)[kCount]) {
#pragma unroll
  for (int bit = 1, left = kCount / 2; bit < kCount; bit *= 2, left /= 2) {
    const bool odd = lane_id() & bit;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const double kept = odd ? v[2 * i + 1] : v[2 * i], given = odd ? v[2 * i] : v[2 * i + 1];
      v[i] = kept + __shfl_xor_sync(kAllLanes, given, bit);
    }
  }
#pragma unroll
  for (int lanes = kCount; lanes < kWarp; lanes *= 2) v[0] += __shfl_xor_sync(kAllLanes, v[0], lanes);
  return v[0];
}

__device__ inline float warp_max(float v) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, lanes));
  return v;
}

// ---------------------------------------------------------------------------------- numbers as bits

// Bits of a float32 ordered like the number, negative ones included.
__device__ inline int sortable(float v) {
  const int b = __float_as_int(v);
  return b ^ ((b >> 31) & 0x7fffffff);
}

__device__ inline float from_sortable(int b) { return __int_as_float(b ^ ((b >> 31) & 0x7fffffff)); }

// 2^e for -126 <= e <= 127, and what 2^-e is: both normal.
struct Unit {
  float scale, back;
};

__device__ inline Unit power_of_two(int exponent) {
  const int e = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  return {__int_as_float((e + 127) << 23), __int_as_float((127 - e) << 23)};
}

}  // namespace ldreg::cuda
