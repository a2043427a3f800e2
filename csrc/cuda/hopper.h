// Hopper's asynchronous machinery (sm_90a) as thin inline wrappers: mbarriers, copies, warpgroup products.
//
// One PTX instruction or idiom each; the protocol is the kernel's. On an architecture without it a wrapper is a trap, so
// a kernel that only Hopper launches still compiles everywhere; LDREG_HOPPER (0 or 1) lets it drop its body there.
// Copies and products are the "async proxy": what ordinary stores wrote, or ordinary loads still read, is ordered with
// them by fence_proxy_async alone. Rows that other blocks wrote in this kernel need it in every writing thread before
// those publish them, and once more in the thread that issues the copies, after it has seen that.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "device.h"

namespace ldreg::cuda {

// ---------------------------------------------------------------- where operands and sums of products stand

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Descriptor of a K-major float16 operand as a 128-byte-swizzled box leaves it: rows of 64 features at a pitch of 128
// bytes, 16-byte chunk c of row r at c ^ (r % 8), groups of eight rows 1024 bytes apart (`rows` is aligned to that).
// Adding 2 to it is the next 16 features, 512 the next 64 rows.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* rows) {
  const uint64_t start = (shared_address(rows) & 0x3ffff) >> 4;
  const uint64_t leading = 1;          // not used with this swizzle
  const uint64_t stride = 1024 >> 4;   // from one group of eight rows to the next
  const uint64_t swizzle_128 = 1;
  return start | leading << 16 | stride << 32 | swizzle_128 << 62;
}

// Where this thread's s-th sum stands among the warpgroup's 64 rows and the 128 columns.
__device__ __forceinline__ int wgmma_row(unsigned thread, int s) {
  return thread / 32 % 4 * 16 + thread % 32 / 4 + (s >> 1 & 1) * 8;
}
__device__ __forceinline__ int wgmma_column(unsigned thread, int s) { return s / 4 * 8 + thread % 4 * 2 + (s & 1); }

}  // namespace ldreg::cuda

#if defined(LDREG_SIMT)
#include "hopper_emulated.h"  // python_tests/simt: the rest without a GPU
#else

// __CUDA_ARCH_FEAT_SM90_ALL means compute_90a, with the "a".
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LDREG_HOPPER 1
#define LDREG_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define LDREG_HOPPER 0
#define LDREG_HOPPER_ASM(...) __trap()
#endif

// What is older or lives on: mbarriers and copies by threads since sm_80, the copy engine since sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define LDREG_MBARRIER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define LDREG_MBARRIER_ASM(...) __trap()
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define LDREG_BULK_ASM(...) asm volatile(__VA_ARGS__)
#define LDREG_TRY_WAIT "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;\n\t"
#else
#define LDREG_BULK_ASM(...) __trap()
#define LDREG_TRY_WAIT "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"  // returns at once
#endif

namespace ldreg::cuda {

// ---------------------------------------------------------------- mbarriers: 8 bytes of shared memory each

// A phase ends after `arrivals` arrivals and all bytes expected in it. The first phase has parity 0. One thread.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  LDREG_MBARRIER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Shows its inits to the copy engine, by the thread that made them; __syncthreads then shows them to the block.
__device__ __forceinline__ void mbarrier_fence_init() {
  LDREG_BULK_ASM("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}

// Ends the barrier's life, so that its 8 bytes can be something else. One thread, when nobody waits or arrives again.
__device__ __forceinline__ void mbarrier_invalidate(uint64_t* barrier) {
  LDREG_MBARRIER_ASM("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One arrival; what this thread did before is visible to whoever waits for the phase.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  LDREG_MBARRIER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// As many at once.
__device__ __forceinline__ void mbarrier_arrive_times(uint64_t* barrier, int times) {
  LDREG_HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(times) : "memory");
}

// One arrival that also makes the phase wait for `bytes` from copies. Goes before the copies it announces.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) {
  LDREG_BULK_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                   : "memory");
}

// Returns once the phase of this parity has ended: asked for parity 1, a fresh barrier lets through at once. The
// hardware suspends the thread up to the hinted nanoseconds, so the loop hardly spins.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  const Watchdog watchdog;
  uint32_t done = 0;
  do {
    watchdog.look(barrier, parity);
    LDREG_MBARRIER_ASM(
        "{\n\t.reg .pred p;\n\t"
        LDREG_TRY_WAIT
        "selp.b32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity), "r"(1000000)
        : "memory");
  } while (!done);
}

// ---------------------------------------------------------------- tensor copies

// Copies the map's box at (column, row) to `to` and counts its full size, zeros beyond the matrix included.
__device__ __forceinline__ void tma_load_2d(const CUtensorMap* map, uint64_t* barrier, void* to, int column, int row) {
  LDREG_HOPPER_ASM(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// ---------------------------------------------------------------- copies of rows

// `bytes` to `to`, counted at the barrier when they are there; all three multiples of 16. One thread, the copy engine.
__device__ __forceinline__ void copy_bulk(uint64_t* barrier, void* to, const void* from, int bytes) {
  LDREG_BULK_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// kBytes (4, 8 or 16, and so aligned) to `to`, by this thread.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  if constexpr (kBytes == 16) {
    LDREG_MBARRIER_ASM("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
                       "l"(__cvta_generic_to_global(from))
                       : "memory");
  } else {
    LDREG_MBARRIER_ASM("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)),
                       "l"(__cvta_generic_to_global(from)), "n"(kBytes)
                       : "memory");
  }
}

// One arrival, as soon as everything that this thread has copied so has landed.
__device__ __forceinline__ void mbarrier_arrive_when_copied(uint64_t* barrier) {
  LDREG_MBARRIER_ASM("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// ---------------------------------------------------------------- order

// Orders this thread's ordinary accesses, to all memory, with those of copies and products, on either side.
__device__ __forceinline__ void fence_proxy_async() { LDREG_BULK_ASM("fence.proxy.async;" ::: "memory"); }

// ---------------------------------------------------------------- products, by the four warps of a warpgroup

#define LDREG_SUMS_8(s, i) \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
      "+f"(s[i + 7])
#define LDREG_SUMS_32(s, i) \
  LDREG_SUMS_8(s, i), LDREG_SUMS_8(s, i + 8), LDREG_SUMS_8(s, i + 16), LDREG_SUMS_8(s, i + 24)
#define LDREG_SUMS_64(s) LDREG_SUMS_32(s, 0), LDREG_SUMS_32(s, 32)

// Before the first product of a batch: earlier register and shared-memory accesses come first.
__device__ __forceinline__ void warpgroup_arrive() { LDREG_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
__device__ __forceinline__ void warpgroup_commit() {
  LDREG_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Returns when all but the N newest groups are done with their operands. Sums may not be read after this one.
template <int N>
__device__ __forceinline__ void warpgroup_wait() {
  LDREG_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Waits for every group. Naming the sums keeps the compiler from moving arithmetic on them to before the wait.
__device__ __forceinline__ void warpgroup_finish(float (&sum)[64]) {
  LDREG_HOPPER_ASM("wgmma.wait_group.sync.aligned 0;" : LDREG_SUMS_64(sum)::"memory");
}

// sum = a b^T, or += with `accumulate`: 64 rows of a, 128 of b, 16 features of each, float16 products, float32 sums.
__device__ __forceinline__ void wgmma_m64n128k16(float (&sum)[64], uint64_t a, uint64_t b, int accumulate) {
  LDREG_HOPPER_ASM(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n\t}"
      : LDREG_SUMS_64(sum)
      : "l"(a), "l"(b), "r"(accumulate));
}

#undef LDREG_SUMS_8
#undef LDREG_SUMS_32
#undef LDREG_SUMS_64

// ---------------------------------------------------------------- roles within a block

// True in one lane of a converged warp. Copies issued under it need no loop over lanes, as under `lane == 0` they do.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected = 0;
  LDREG_BULK_ASM(
      "{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\tselp.b32 %0, 1, 0, p;\n\t}"
      : "=r"(elected)::"memory");
  return elected;
}

}  // namespace ldreg::cuda

#endif
