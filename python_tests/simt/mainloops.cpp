// Checks of the main loops in csrc/cuda on the machine of simt.h: products of small integers have to be exact, whatever
// the order of threads and the timing of copies and products. `mainloops mma SEED`, `mainloops hopper SEED`,
// `mainloops kept SEED`: what is wrong goes to stderr. kernels/test_mainloops.py also compiles it with mistakes, which have to
// be found.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "hopper.h"
#include "mainloop_mma.h"
#include "tensor_map.h"

namespace ldreg::cuda {

// ---------------------------------------------------------------- kernels

// 128 rows of x by 256 rows of y: two tiles, one after the other through the same shared memory.
void mma_tiles(const __half* x, const __half* y, int columns, float* out) {
  for (int tile = 0; tile < 2; ++tile) {
    float sum[MmaLoop::kSums];
    MmaLoop::multiply(x, y + int64_t(tile) * 128 * columns, columns, simt::shared_memory(), sum);
    for (int s = 0; s < MmaLoop::kSums; ++s) out[MmaLoop::row(s) * 256 + tile * 128 + MmaLoop::column(s)] = sum[s];
  }
}

// Where a role stands in the ring of stages; the parity flips at every turn.
struct RingPosition {
  static constexpr int kStages = 3;
  int stage = 0;
  uint32_t parity = 0;
  void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

constexpr int kStep = 64, kTileRows = 128, kTileColumns = 128;
constexpr int kBox = kBoxRows * kStep * 2, kStageBytes = 2 * kBox;  // 128 rows of x, 128 of y
constexpr int kRingBytes = RingPosition::kStages * kStageBytes + 1024;

// Persistent blocks of 384 threads work off `tiles` tiles of 128 x 128: one warpgroup loads, two multiply 64 rows each.
void hopper_tiles(const CUtensorMap& x_map, const CUtensorMap& y_map, int columns, int row_tiles, int tiles, float* out,
                  int pitch) {
  char* shared = simt::shared_memory();
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + RingPosition::kStages * kStageBytes);
  uint64_t* empty = full + RingPosition::kStages;
  const int warp = int(threadIdx.x) / 32, group = warp / 4, lane = int(threadIdx.x) % 32;
  const int steps = columns / kStep;

  if (threadIdx.x == 0) {
    for (int s = 0; s < RingPosition::kStages; ++s) {
      mbarrier_init(full + s, 1);   // the loader's announcement
      mbarrier_init(empty + s, 8);  // one lane of every warp that multiplies
    }
    mbarrier_fence_init();
  }
  __syncthreads();

  RingPosition at;
  if (group == 0) {
    if (warp != 0 || !elect_one()) return;
    fence_proxy_async();
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
      const int row = tile % row_tiles * kTileRows, column = tile / row_tiles * kTileColumns;
      for (int step = 0; step < steps; ++step) {
        mbarrier_wait(empty + at.stage, at.parity ^ 1);
        mbarrier_arrive_expect_tx(full + at.stage, kStageBytes);
        char* to = shared + at.stage * kStageBytes;
        tma_load_2d(&x_map, full + at.stage, to, step * kStep, row);
        tma_load_2d(&y_map, full + at.stage, to + kBox, step * kStep, column);
        at.advance();
      }
    }
    return;
  }

  const uint64_t first_a = wgmma_descriptor(shared) + unsigned(group - 1) * 512;
  const uint64_t first_b = wgmma_descriptor(shared + kBox);
  for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
    float sum[64];
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(full + at.stage, at.parity);
      const uint64_t stage = unsigned(at.stage) * (kStageBytes >> 4), a = first_a + stage, b = first_b + stage;
      warpgroup_arrive();
      for (unsigned k = 0; k < kStep / 16; ++k) wgmma_m64n128k16(sum, a + 2 * k, b + 2 * k, step > 0 || k > 0);
      warpgroup_commit();
      warpgroup_wait<1>();  // this step's group stays in flight; the one before has read its stage
      if (step > 0 && lane == 0) mbarrier_arrive(empty + previous);
      previous = at.stage;
      at.advance();
    }
    warpgroup_finish(sum);
    if (lane == 0) mbarrier_arrive(empty + previous);

    const int row = tile % row_tiles * kTileRows + (group - 1) * 64, column = tile / row_tiles * kTileColumns;
    for (int s = 0; s < 64; ++s)
      out[int64_t(row + wgmma_row(thread_id(), s)) * pitch + column + wgmma_column(thread_id(), s)] = sum[s];
  }
}

// The same where x stays in shared memory for a run of tiles, all of one row: the ring holds boxes of y alone.
constexpr int kMostSteps = 5, kKeptBytes = (kMostSteps + RingPosition::kStages) * kBox + 1024;

void kept_tiles(const CUtensorMap& x_map, const CUtensorMap& y_map, int columns, int row_tiles, int run, float* out,
                int pitch) {
  char* shared = simt::shared_memory();
  char* ring = shared + kMostSteps * kBox;
  uint64_t* full = reinterpret_cast<uint64_t*>(ring + RingPosition::kStages * kBox);
  uint64_t* empty = full + RingPosition::kStages;
  uint64_t* kept = empty + RingPosition::kStages;
  const int warp = int(threadIdx.x) / 32, group = warp / 4, lane = int(threadIdx.x) % 32;
  const int steps = columns / kStep;

  if (threadIdx.x == 0) {
    for (int s = 0; s < RingPosition::kStages; ++s) mbarrier_init(full + s, 1), mbarrier_init(empty + s, 16);
    mbarrier_init(kept, 1);
    mbarrier_fence_init();
  }
  __syncthreads();

  RingPosition at;
  if (group == 0) {
    if (warp != 0 || !elect_one()) return;
    fence_proxy_async();
    for (int row = int(blockIdx.x); row < row_tiles; row += int(gridDim.x)) {
      RingPosition all = at;
      for (int s = 0; s < RingPosition::kStages; ++s, all.advance())
        mbarrier_wait(empty + all.stage, all.parity ^ 1);  // the run before has been multiplied
      mbarrier_arrive_expect_tx(kept, steps * kBox);
      for (int step = 0; step < steps; ++step) tma_load_2d(&x_map, kept, shared + step * kBox, step * kStep, row * kTileRows);
      for (int i = 0; i < run * steps; ++i, at.advance()) {
        mbarrier_wait(empty + at.stage, at.parity ^ 1);
        mbarrier_arrive_expect_tx(full + at.stage, kBox);
        tma_load_2d(&y_map, full + at.stage, ring + at.stage * kBox, i % steps * kStep, i / steps * kTileColumns);
      }
    }
    return;
  }

  const uint64_t first_a = wgmma_descriptor(shared) + unsigned(group - 1) * 512, first_b = wgmma_descriptor(ring);
  uint32_t turn = 0;
  for (int row = int(blockIdx.x); row < row_tiles; row += int(gridDim.x), turn ^= 1) {
    mbarrier_wait(kept, turn);
    for (int tile = 0; tile < run; ++tile) {
      float sum[64];
      for (int step = 0; step < steps; ++step, at.advance()) {
        mbarrier_wait(&full[at.stage], at.parity);
        const uint64_t a = first_a + unsigned(step) * (kBox >> 4), b = first_b + unsigned(at.stage) * (kBox >> 4);
        warpgroup_arrive();
        for (unsigned k = 0; k < kStep / 16; ++k) wgmma_m64n128k16(sum, a + 2 * k, b + 2 * k, step > 0 || k > 0);
        warpgroup_commit();
        warpgroup_wait<0>();  // the box has been read
        if (lane == 0) mbarrier_arrive_times(empty + at.stage, 2);
      }
      warpgroup_finish(sum);  // of the run's tile
      const int first_row = row * kTileRows + (group - 1) * 64, first_column = tile * kTileColumns;
      for (int s = 0; s < 64; ++s)
        out[int64_t(first_row + wgmma_row(thread_id(), s)) * pitch + first_column + wgmma_column(thread_id(), s)] = sum[s];
    }
  }
}

// ---------------------------------------------------------------- checks

// Rows of integers from -7 to 7: sums of a few hundred products are exact in float32.
struct Matrix {
  int rows, columns;
  std::vector<float> values;
  std::vector<__half> halves;
  const __half* data;  // 16-byte aligned
  Matrix(int rows_, int columns_, unsigned seed) : rows(rows_), columns(columns_), halves(size_t(rows * columns) + 8) {
    std::mt19937 random(seed);
    __half* to = halves.data();
    while (reinterpret_cast<uintptr_t>(to) % 16) ++to;
    data = to;
    for (int i = 0; i < rows * columns; ++i) {
      values.push_back(float(int(random() % 15) - 7));
      *to++ = __float2half(values.back());
    }
  }
};

// out is [out_rows, out_columns]; beyond x and y the products are 0.
bool exact(const Matrix& x, const Matrix& y, const std::vector<float>& out, int out_rows, int out_columns) {
  for (int i = 0; i < out_rows; ++i)
    for (int j = 0; j < out_columns; ++j) {
      float dot = 0;
      for (int c = 0; i < x.rows && j < y.rows && c < x.columns; ++c)
        dot += x.values[size_t(i * x.columns + c)] * y.values[size_t(j * x.columns + c)];
      const float is = out[size_t(i * out_columns + j)];
      if (is == dot) continue;
      std::fprintf(stderr, "%d columns: row %d . row %d is %g, not %g\n", x.columns, i, j, is, dot);
      return false;
    }
  return true;
}

bool check_mma(unsigned seed) {
  for (int columns : {64, 128, 192, 448}) {
    const Matrix x(128, columns, 1), y(256, columns, 2);
    std::vector<float> out(128 * 256, NAN);
    simt::Launch launch;
    launch.block = MmaLoop::kThreads, launch.shared_bytes = MmaLoop::kSharedBytes, launch.seed = seed;
    simt::launch(launch, [&] { mma_tiles(x.data, y.data, columns, out.data()); });
    if (!exact(x, y, out, 128, 256)) return false;
  }
  if (mma::matrices_with_conflicts == 0) return true;
  std::fprintf(stderr, "bank conflicts in %llu of %llu matrices\n", (unsigned long long)mma::matrices_with_conflicts,
               (unsigned long long)mma::matrices_read);
  return false;
}

// 2 x 4 tiles, the last of which reach beyond the rows, by one block and by three.
bool check_hopper(unsigned seed, bool kept) {
  for (int columns : {64, 192, 320}) {
    const Matrix x(250, columns, 1), y(391, columns, 2);
    const CUtensorMap x_map = tensor_map(x.data, 250, uint64_t(columns));
    const CUtensorMap y_map = tensor_map(y.data, 391, uint64_t(columns));
    std::vector<float> out(256 * 512, NAN);
    simt::Launch launch;
    launch.grid = columns == 64 ? 3 : 1;
    launch.block = 384, launch.shared_bytes = kept ? kKeptBytes : kRingBytes, launch.seed = seed;
    simt::launch(launch, [&] {
      if (kept) kept_tiles(x_map, y_map, columns, 2, 4, out.data(), 512);
      else hopper_tiles(x_map, y_map, columns, 2, 8, out.data(), 512);
    });
    if (!exact(x, y, out, 256, 512)) return false;
  }
  return true;
}

}  // namespace ldreg::cuda

int main(int count, char** words) {
  const std::string loop = count == 3 ? words[1] : "";
  if (loop != "mma" && loop != "hopper" && loop != "kept")
    return std::fprintf(stderr, "mainloops mma|hopper|kept SEED\n"), 2;
  simt::options().stall_limit = 1000000;  // mistakes may end in a deadlock
  try {
    const unsigned seed = unsigned(std::atoi(words[2]));
    return (loop == "mma" ? ldreg::cuda::check_mma(seed) : ldreg::cuda::check_hopper(seed, loop == "kept")) ? 0 : 1;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
