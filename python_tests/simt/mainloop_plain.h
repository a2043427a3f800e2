// Stand-in for the tensor-core main loop: the same tile, the same owner of every sum, by plain float32 loops.
//
// Contract: that of MmaLoop (csrc/cuda/mainloop_mma.h), through shared memory in steps as there.
#pragma once

#include "cuda/device.h"

#include <cuda_fp16.h>

namespace ldreg::cuda {

struct PlainLoop {
  static constexpr int kThreads = 256, kRows = 128, kColumns = 128, kStep = 64, kSums = 64;
  static constexpr int kSharedBytes = (kRows + kColumns) * (kStep + 1) * int(sizeof(float));

  static int row(int s) { return warp_id() / 4 * 64 + s / 16 * 16 + lane_id() / 4 + 8 * (s >> 1 & 1); }
  static int column(int s) { return warp_id() % 4 * 32 + s / 4 % 4 * 8 + 2 * (lane_id() % 4) + (s & 1); }

  static void multiply(const __half* x, const __half* y, int columns, char* shared, float (&sum)[kSums]) {
    float* tile = reinterpret_cast<float*>(shared);
    for (float& s : sum) s = 0;
    for (int from = 0; from < columns; from += kStep) {
      for (int i = threadIdx.x; i < (kRows + kColumns) * kStep; i += kThreads) {
        const int r = i / kStep, c = i % kStep;
        tile[r * (kStep + 1) + c] = __half2float((r < kRows ? x + int64_t(r) * columns : y + int64_t(r - kRows) * columns)[from + c]);
      }
      __syncthreads();
      for (int s = 0; s < kSums; ++s) {
        const float* a = tile + row(s) * (kStep + 1);
        const float* b = tile + (kRows + column(s)) * (kStep + 1);
        float part[4] = {};
        for (int c = 0; c < kStep; ++c) part[c % 4] += a[c] * b[c];
        sum[s] += (part[0] + part[1]) + (part[2] + part[3]);
      }
      __syncthreads();
    }
  }
};

}  // namespace ldreg::cuda
