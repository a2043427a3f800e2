// The tile stage of a block in which all threads do the same: load, multiply, filter, append. For Ampere and newer.
//
// Contract: `run` works off the tile of the ticket; shared memory is free again when it returns. The warp-specialised form
// of the same stage for Hopper is tile_stage_hopper.h.
#pragma once

#include "dense.h"
#include "tile.h"

namespace ldreg::cuda {

template <class Loop>
struct TileStage {
  static constexpr bool kLooksAhead = false, kCompiled = true, kPairsOnly = false, kBulk = kBulkCopies;
  static constexpr int kThreads = Loop::kThreads, kWidth = 1, kStep = Loop::kStep, kKeptColumns = 0, kDenseThreads = kThreads,
                       kDenseBytes = DenseShape<float, kDenseThreads>::kBytes;

  static constexpr int kQueue = 2048;  // hits there is room for at a time

  struct Shared {  // where the operands were
    float sum[Loop::kSums][kThreads];
    Sides<kBlock> rows, columns;
    int found[2];  // hits for queries and for references
    Hit queue[kQueue];
  };

  // Products in shared memory, each its thread's own: what follows can then loop over them, and few registers do.
  struct Sums {
    const float* mine;
    __device__ float operator[](int s) const { return mine[s * kThreads]; }
  };
  struct Layout {
    static constexpr int kUnroll = 4, kFoursOfRow = 4;
    static __device__ int row() { return Loop::row(0); }
    static __device__ int column() { return Loop::column(0); }
    static __device__ int row_step(int four) { return Loop::row(4 * four) - Loop::row(0); }
    static __device__ int column_step(int four) { return Loop::column(4 * four) - Loop::column(0); }
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
    const int columns = a.plan.columns, i = thread_id() % kBlock;
    const bool row = thread_id() < kBlock;
    const Known known = row ? row_known(a, tile, i) : column_known(a, tile, i);
    float sum[Loop::kSums];
    const Schedule schedule(a);
    Loop::multiply(a.s.x + (tile.m[0].query_block * kBlock + schedule.query_base(at)) * columns,
                   a.s.y + (tile.m[0].reference_block * kBlock + schedule.base(at)) * columns, columns, memory, sum);

    Shared& shared = *reinterpret_cast<Shared*>(memory);
#pragma unroll
    for (int s = 0; s < Loop::kSums; ++s) shared.sum[s][thread_id()] = sum[s];
    put_side(a, tile, known, i, row ? shared.rows : shared.columns);
    if (thread_id() < 2) shared.found[thread_id()] = 0;
    __syncthreads();
    const Sums sums{&shared.sum[0][thread_id()]};
    append<false>(a, tile, sums, shared);
    if (tile.m[0].back) append<true>(a, tile, sums, shared);
  }

  // To the lists of the queries or, if kBack, of the references.
  template <bool kBack>
  static __device__ inline void append(const Arguments& a, const TileAt& tile, const Sums& sums, Shared& shared) {
    if (tile.first_step) return place_keys<Layout, kBack>(a, tile, shared.rows, shared.columns, sums);
    const Hits hits = find_hits<Layout, kBack>(shared.rows, shared.columns, sums);
    const int mine = reserve(hits, shared.found + kBack);
    __syncthreads();
    const int total = shared.found[kBack];
    for (int window = 0; window < total; window += kQueue) {  // once, but for a flood
      push_hits<Layout>(sums, hits, kBack, mine - window, shared.queue, kQueue);
      __syncthreads();
      drain<4>(a, tile, shared.queue, smaller(total - window, kQueue), thread_id(), kThreads);
      __syncthreads();
    }
  }
  static_assert(Loop::kSums == 4 * kFours);
};

}  // namespace ldreg::cuda
