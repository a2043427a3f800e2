// The tile stage of a block in which all threads do the same: load, multiply, filter, append. For Ampere and newer.
//
// Contract: `run` works off the tile of the ticket; shared memory is free again when it returns. The warp-specialised form
// of the same stage for Hopper is tile_stage_hopper.h.
#pragma once

#include "tile.h"

namespace ldreg::cuda {

template <class Loop>
struct TileStage {
  static constexpr bool kLooksAhead = false, kCompiled = true;
  static constexpr int kThreads = Loop::kThreads, kWidth = 1, kStep = Loop::kStep;
  static constexpr bool kBulk = kBulkCopies;

  struct Shared {  // where the operands were
    float sum[Loop::kSums][kThreads];
    Side rows[kBlock], columns[kBlock];
    Hit queue[kThreads / kWarp][kQueue];
  };

  // Products in shared memory, each its thread's own: what follows can then loop over them, and few registers do.
  struct Sums {
    const float* mine;
    __device__ float operator[](int s) const { return mine[s * kThreads]; }
  };
  struct Layout {
    static constexpr int kSums = Loop::kSums, kUnroll = 4;
    static __device__ int row(int s) { return Loop::row(s); }
    static __device__ int column(int s) { return Loop::column(s); }
    static __device__ int row_step(int s) { return Loop::row(s) - Loop::row(0); }
    static __device__ int column_step(int s) { return Loop::column(s) - Loop::column(0); }
  };
  static constexpr int kSharedBytes = Loop::kSharedBytes > int(sizeof(Shared)) ? Loop::kSharedBytes : int(sizeof(Shared));
  static_assert(kControlBytes + kSharedBytes <= 99 << 10, "what a block may have on consumer GPUs");
  static_assert(kThreads == 2 * kBlock, "a thread looks up one side of the tile");

  // `tile` is in shared memory.
  static __device__ __forceinline__ void run(const Cursor& at, unsigned ticket, TileAt& tile, char* memory, const TensorMap*) {
    const Arguments& a = arguments();
    if (thread_id() == 0) {
      tile = tile_at(a, at, ticket);
      if (tile.m[0].there) await_tile(a, at, tile);
    }
    __syncthreads();
    if (tile.m[0].there) one_tile(a, at, tile, memory);
    __syncthreads();
    if (thread_id() == 0) tile_done(a, at, tile);
  }

 private:
  static __device__ inline void one_tile(const Arguments& a, const Cursor& at, const TileAt& tile, char* memory) {
    const int columns = a.plan.columns;
    const bool row = thread_id() < kBlock, back = tile.m[0].back;
    const int i = thread_id() % kBlock, slot = tile.slot(i), position = tile.position(i);
    Side side = query_side(a, tile, row ? slot : position, row || back);
    if (!row || back) reference_side(a, row ? slot : position, side);

    float sum[Loop::kSums];
    Loop::multiply(a.s.x + int64_t(tile.m[0].query_block) * kBlock * columns,
                   a.s.y + (tile.m[0].reference_block * kBlock + Schedule(a).base(at)) * columns, columns, memory, sum);

    Shared& shared = *reinterpret_cast<Shared*>(memory);
#pragma unroll
    for (int s = 0; s < Loop::kSums; ++s) shared.sum[s][thread_id()] = sum[s];
    (row ? shared.rows : shared.columns)[i] = side;
    __syncthreads();
    const Sums sums{&shared.sum[0][thread_id()]};
    Hit* queue = shared.queue[warp_id()];
    int n = push_hits<Layout, false>(a, tile, shared.rows, shared.columns, sums, 0, queue);
    drain(a, tile, queue, n, lane_id(), kWarp);
    if (!back) return;
    __syncwarp();
    n = push_hits<Layout, true>(a, tile, shared.rows, shared.columns, sums, 0, queue);
    drain(a, tile, queue, n, lane_id(), kWarp);
  }
  static_assert(Loop::kSums == 64, "push_hits takes 64 products");
};

}  // namespace ldreg::cuda
