// Tensor-core main loop for any GPU since Ampere: 128 x 128 dot products of packed float16 rows by mma.sync, operands
// through cp.async.
//
// A block of 256 threads multiplies 128 rows by 128 rows, 64 features a step, through three stages of shared memory:
// one is multiplied while two are on their way. In a stage both operands are [128 rows][8 chunks of 16 bytes], chunk c
// of row r at c ^ (r % 8), so that writing a row and ldmatrix reading eight rows both touch every bank once. The eight
// warps stand 2 x 4, each with a 64 x 32 tile of sums in registers. It knows nothing about distances or selection.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#if defined(LDREG_SIMT)
#include "mma_emulated.h"  // python_tests/simt: the same instructions without a GPU
#else

namespace ldreg::cuda::mma {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// Never launched there; the code around it still has to compile.
__device__ __forceinline__ void copy_16(uint32_t, const void*) { __trap(); }
__device__ __forceinline__ void commit_copies() {}
template <int N>
__device__ __forceinline__ void wait_copies() {}
__device__ __forceinline__ void load_matrices(uint32_t (&)[4], uint32_t) {}
__device__ __forceinline__ void multiply_add(float&, float&, float&, float&, const uint32_t (&)[4], uint32_t,
                                             uint32_t) {}

#else

// 16 bytes from global to shared memory, through L2 only.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Closes the group of copies this thread has issued since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when all but this thread's N newest groups have landed.
template <int N>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// Four 8 x 8 matrices: lane l points at row l % 8 of matrix l / 8; it gets row l / 4, columns 2 (l % 4), + 1 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// d += a b for a 16 x 16, b 16 x 8: float16 products, float32 sums.
__device__ __forceinline__ void multiply_add(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

}  // namespace ldreg::cuda::mma

#endif

namespace ldreg::cuda {

struct MmaLoop {
  static constexpr int kThreads = 256, kRows = 128, kColumns = 128, kStep = 64, kStages = 3, kSums = 64;
  static constexpr int kStageBytes = (kRows + kColumns) * kStep * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes;  // 96 KB

  // Where this thread's s-th sum stands in the tile; s = (mi * 4 + ni) * 4 + e for 16-row block mi, 8-column block ni.
  __device__ static int row(int s) {
    return int(threadIdx.x) / 128 * 64 + s / 16 * 16 + int(threadIdx.x) % 32 / 4 + (s >> 1 & 1) * 8;
  }
  __device__ static int column(int s) {
    return int(threadIdx.x) / 32 % 4 * 32 + s / 4 % 4 * 8 + int(threadIdx.x) % 4 * 2 + (s & 1);
  }

  // sum[s] = x[row(s)] . y[column(s)]. x and y are [128, columns], contiguous in global memory, and other blocks may
  // have written them earlier in this kernel: copies read L2 (.cg), never a stale L1. `columns` is a multiple of 64 and
  // both pointers are 16-byte aligned (128 is faster). All threads call, none of them still using `shared` (aligned to
  // 1024 bytes) for anything else; it is free again on return.
  __device__ static void multiply(const __half* x, const __half* y, int columns, char* shared, float (&sum)[kSums]) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const uint32_t base = shared_address(shared);

    // Copying: eight neighbouring threads take one 128-byte row, the block 32 rows at a time.
    const int copy_row = thread / 8, copy_chunk = thread % 8;
    const uint32_t copy_to = base + copy_row * kPitch + (copy_chunk ^ copy_row % 8) * 16;
    const __half* from_x = x + int64_t(copy_row) * columns + copy_chunk * 8;
    const __half* from_y = y + int64_t(copy_row) * columns + copy_chunk * 8;
    const int64_t rows32 = int64_t(32) * columns;

    // Reading: the lane's row and the low bit of its chunk, for k16 block 0; block k is at `^ 32 * k`, since the chunk
    // number's other bits are k's and a stage starts at a multiple of 128 bytes.
    const uint32_t read_x = base + (warp / 4 * 64 + lane % 16) * kPitch + (lane / 16 ^ lane % 8) * 16;
    const uint32_t read_y = base + (kRows + warp % 4 * 32 + lane / 16 * 8 + lane % 8) * kPitch +
                            ((lane >> 3 & 1) ^ lane % 8) * 16;

    const int steps = columns / kStep;
    uint32_t load_stage = 0, read_stage = 0;  // byte offsets
    auto load = [&] {
#pragma unroll
      for (int i = 0; i < kRows / 32; ++i) {
        mma::copy_16(copy_to + load_stage + i * 32 * kPitch, from_x + i * rows32);
        mma::copy_16(copy_to + load_stage + (kRows + i * 32) * kPitch, from_y + i * rows32);
      }
      from_x += kStep;
      from_y += kStep;
    };

#pragma unroll
    for (int s = 0; s < kSums; ++s) sum[s] = 0;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) load();
      mma::commit_copies();
      load_stage = next(load_stage);
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      // Every step commits one group, past the end an empty one, so "all but the newest" always includes this step's.
      mma::wait_copies<kStages - 2>();
      __syncthreads();  // everyone's copies have landed, and the stage of step - 1 has been read: it is filled next
      if (step + kStages - 1 < steps) load();
      mma::commit_copies();
      load_stage = next(load_stage);

#pragma unroll
      for (int k = 0; k < kStep / 16; ++k) {
        uint32_t a[4][4], b[2][4];  // b[j] holds the 8-column blocks 2 j and 2 j + 1
#pragma unroll
        for (int j = 0; j < 2; ++j) mma::load_matrices(b[j], ((read_y + read_stage) ^ k * 32) + j * 16 * kPitch);
#pragma unroll
        for (int mi = 0; mi < 4; ++mi) mma::load_matrices(a[mi], ((read_x + read_stage) ^ k * 32) + mi * 16 * kPitch);
#pragma unroll
        for (int mi = 0; mi < 4; ++mi)
#pragma unroll
          for (int ni = 0; ni < 4; ++ni) {
            float* d = sum + (mi * 4 + ni) * 4;
            mma::multiply_add(d[0], d[1], d[2], d[3], a[mi], b[ni / 2][ni % 2 * 2], b[ni / 2][ni % 2 * 2 + 1]);
          }
      }
      read_stage = next(read_stage);
    }
    mma::wait_copies<0>();  // only empty groups are left
    __syncthreads();
  }

 private:
  static constexpr int kPitch = kStep * 2;  // bytes of a row in shared memory: the 32 banks, once
  static_assert(kPitch == 128 && kRows == kColumns && kStageBytes % 1024 == 0);

  __device__ static uint32_t next(uint32_t stage) {
    return stage == (kStages - 1) * kStageBytes ? 0 : stage + kStageBytes;
  }
  __device__ static uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
};

}  // namespace ldreg::cuda
