// The tile stage on Hopper: one warp loads, four warpgroups multiply, three warps append candidates, all at the same time.
//
// Contract: as TileStage, but `run` works off tiles until the next ticket is something else, which it leaves in the cursor
// (kLooksAhead), so that operands of the next tile are on their way while this one is filtered. A tile is 128 queries by
// 256 references. Roles meet through mbarriers only:
//   loader      ticket, dependencies, tensor copies into a ring of kStages x 48 KB; a record of each tile for the others
//   matrix      64 x 128 products a warpgroup in registers; hits into the warp's queue
//   selection   queues to lists; counts the tile as done
// Four warpgroups, so that 64 sums a thread fit without setmaxnreg: the compiler cannot deal registers out inside the loop
// over jobs (it then serialises wgmma).
#pragma once

#include "hopper.h"
#include "tile.h"

namespace ldreg::cuda {

#if !defined(LDREG_HOPPER)
#define LDREG_HOPPER 0
#endif

struct HopperTileStage {
  static constexpr bool kLooksAhead = true, kCompiled = LDREG_HOPPER;
  static constexpr int kThreads = 640, kWidth = 2, kStep = 64;
  static constexpr bool kBulk = kCompiled;
  static constexpr int kMatrixWarps = 16, kSelectionWarps = 3, kStages = 3, kBuffers = 2;
  static constexpr int kBoxBytes = kBlock * kStep * 2, kStageBytes = (1 + kWidth) * kBoxBytes;

  struct Record {  // a tile, from the loader to the others; at.job says whether there is one
    Cursor at;
    TileAt tile;
  };

  struct Shared {
    uint64_t full[kStages], empty[kStages];                      // of the ring
    uint64_t record_full[kBuffers], record_empty[kBuffers];
    uint64_t queue_full[kBuffers], queue_empty[kBuffers];
    Record record[kBuffers];
    int count[kBuffers][kMatrixWarps];
    Side rows[kBlock], columns[kWidth * kBlock];
    Hit queue[kBuffers][kMatrixWarps][kQueue];
  };
  static constexpr int kSharedBytes = kStages * kStageBytes + int(sizeof(Shared));
  static_assert(kControlBytes + kSharedBytes <= 227 << 10, "what a block may have on Hopper");

  // Where a role stands in a ring of buffers; the parity flips at every turn.
  template <int kCount>
  struct Turn {
    int at = 0;
    uint32_t parity = 0;
    __device__ void advance() {
      if (++at == kCount) at = 0, parity ^= 1;
    }
  };

  // Warpgroups stand 2 x 2: 64 rows, and one of the two blocks of references.
  struct Layout {
    static constexpr int kSums = 64, kUnroll = 64;
    static __device__ int group() { return warp_id() / 4 - 1; }
    static __device__ int row(int s) { return group() % 2 * 64 + wgmma_row(s); }
    static __device__ int column(int s) { return group() / 2 * kBlock + wgmma_column(s); }
    static __device__ int row_step(int s) { return (s >> 1 & 1) * 8; }
    static __device__ int column_step(int s) { return s / 4 * 8 + (s & 1); }
  };

  static __device__ __forceinline__ void run(Cursor& at, unsigned& ticket, TileAt&, char* memory, const TensorMap* maps) {
#if LDREG_HOPPER
    const Arguments& a = arguments();
    Shared& shared = *reinterpret_cast<Shared*>(memory + kStages * kStageBytes);
    if (thread_id() == 0) open(shared);
    __syncthreads();
    const int group = __shfl_sync(kAllLanes, warp_id() / 4, 0);  // the compiler then knows that it is uniform
    if (group > 0) multiply(a, group - 1, memory, shared);
    else if (warp_id() > 0) select(a, shared);
    else if (elect_one()) load(a, at, ticket, memory, shared, maps);
    __syncthreads();
    if (thread_id() == 0) close(shared);
    __syncthreads();
#endif
  }

 private:
  static __device__ void open(Shared& shared) {
    for (int i = 0; i < kStages; ++i) mbarrier_init(shared.full + i, 1), mbarrier_init(shared.empty + i, kMatrixWarps);
    for (int i = 0; i < kBuffers; ++i) {
      mbarrier_init(shared.record_full + i, 1);
      mbarrier_init(shared.record_empty + i, kMatrixWarps + kSelectionWarps);
      mbarrier_init(shared.queue_full + i, kMatrixWarps);
      mbarrier_init(shared.queue_empty + i, kSelectionWarps);
    }
    mbarrier_fence_init();
  }

  static __device__ void close(Shared& shared) {
    for (uint64_t* barrier = shared.full; barrier != reinterpret_cast<uint64_t*>(shared.record); ++barrier)
      mbarrier_invalidate(barrier);
  }

  // One thread.
  static __device__ __forceinline__ void load(const Arguments& a, Cursor& at, unsigned& ticket, char* memory, Shared& shared,
                                              const TensorMap* maps) {
    const Schedule schedule(a);
    const auto* x_map = reinterpret_cast<const CUtensorMap*>(maps);
    const auto* y_map = reinterpret_cast<const CUtensorMap*>(maps + 1);
    Turn<kStages> stage;
    Turn<kBuffers> record;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_empty + record.at, record.parity ^ 1);
      Record& next = shared.record[record.at];
      next.at = at;
      if (at.job == Job::tiles) next.tile = tile_at(a, at, ticket);
      mbarrier_arrive(shared.record_full + record.at);
      if (at.job != Job::tiles) return;
      const TileAt& tile = next.tile;
      const bool there = tile.m[0].there || tile.m[1].there;  // else nobody is waited for, and nothing loaded
      if (there) {
        await_tile(a, at, tile);
        fence_proxy_async();  // what other blocks packed is read by copies
      }
      const int x_row = tile.m[0].query_block * kBlock;
      int y_row[kWidth];
#pragma unroll
      for (int h = 0; h < kWidth; ++h)
        y_row[h] = (tile.m[h].there ? tile.m[h].reference_block : tile.m[0].reference_block) * kBlock + int(schedule.base(at));
      for (int c = 0; there && c < a.plan.columns; c += kStep, stage.advance()) {
        mbarrier_wait(shared.empty + stage.at, stage.parity ^ 1);
        uint64_t* full = shared.full + stage.at;
        mbarrier_arrive_expect_tx(full, kStageBytes);
        char* to = memory + stage.at * kStageBytes;
        tma_load_2d(x_map, full, to, c, x_row);
        tma_load_2d(y_map, full, to + kBoxBytes, c, y_row[0]);
        tma_load_2d(y_map, full, to + 2 * kBoxBytes, c, y_row[1]);
      }
      ticket = atomicAdd(a.s.state + kTicket, 1u);
      schedule.seek(at, ticket);
    }
  }

  // Four warpgroups.
  static __device__ __forceinline__ void multiply(const Arguments& a, int group, char* memory, Shared& shared) {
    const uint64_t first_x = wgmma_descriptor(memory) + group % 2 * 512;  // in units of 16 bytes
    const uint64_t first_y = wgmma_descriptor(memory + (1 + group / 2) * kBoxBytes);
    const int thread = thread_id() - kTeam;
    Turn<kStages> stage;
    Turn<kBuffers> record, queue;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at, record.parity);
      const Record& tile = shared.record[record.at];
      if (tile.at.job != Job::tiles) return;
      float sum[Layout::kSums] = {};  // else the registers would count as in use since the last tile, through every call
      int previous = 0;
      const bool there = tile.tile.m[0].there || tile.tile.m[1].there;
      for (int c = 0; there && c < a.plan.columns; c += kStep) {
        mbarrier_wait(shared.full + stage.at, stage.parity);
        const uint64_t x = first_x + stage.at * (kStageBytes >> 4), y = first_y + stage.at * (kStageBytes >> 4);
        warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) wgmma_m64n128k16(sum, x + 2 * k, y + 2 * k, c > 0 || k > 0);
        warpgroup_commit();
        warpgroup_wait<1>();  // this step's products go on; those of the one before have read their stage
        if (c > 0 && lane_id() == 0) mbarrier_arrive(shared.empty + previous);
        previous = stage.at;
        stage.advance();
      }
      warpgroup_finish(sum);
      if (there && lane_id() == 0) mbarrier_arrive(shared.empty + previous);

      look_up(a, tile, thread, shared);
      named_barrier(kMatrixBarrier, kMatrixWarps * kWarp);
      round<false>(a, tile.tile, sum, shared, queue);
      if (a.plan.symmetric) round<true>(a, tile.tile, sum, shared, queue);
      named_barrier(kMatrixBarrier, kMatrixWarps * kWarp);  // the sides are no longer read
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at);
    }
  }

  static constexpr int kMatrixBarrier = 8, kSelectionBarrier = 9;

  // Sides of the tile: 384 of the 512 threads have one to look up.
  static __device__ __forceinline__ void look_up(const Arguments& a, const Record& record, int thread, Shared& shared) {
    const TileAt& tile = record.tile;
    if (thread < kWidth * kBlock) {
      const Meeting& m = tile.m[thread / kBlock];
      const int position = tile.position(thread);
      Side column = query_side(a, tile, position, m.back);
      if (m.there) reference_side(a, position, column);
      shared.columns[thread] = column;
    } else if (thread < (kWidth + 1) * kBlock) {
      const int row = thread - kWidth * kBlock;
      Side side = query_side(a, tile, tile.slot(row), tile.m[0].there || tile.m[1].there);
      if (tile.m[0].back || tile.m[1].back) reference_side(a, tile.slot(row), side);
      shared.rows[row] = side;
    }
  }

  // A round of the queue: hits for the lists of the queries or, if kBack, of the references.
  template <bool kBack>
  static __device__ __forceinline__ void round(const Arguments& a, const TileAt& tile, const float (&sum)[Layout::kSums],
                                               Shared& shared, Turn<kBuffers>& queue) {
    const int warp = warp_id() - kTeam / kWarp;
    mbarrier_wait(shared.queue_empty + queue.at, queue.parity ^ 1);
    const int n = push_hits<Layout, kBack>(a, tile, shared.rows, shared.columns, sum, 0, shared.queue[queue.at][warp]);
    if (lane_id() == 0) {
      shared.count[queue.at][warp] = n;
      mbarrier_arrive(shared.queue_full + queue.at);
    }
    queue.advance();
  }

  // Three warps.
  static __device__ __forceinline__ void select(const Arguments& a, Shared& shared) {
    const int thread = thread_id() - kWarp, threads = kSelectionWarps * kWarp;
    Turn<kBuffers> record, queue;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at, record.parity);
      const Record& tile = shared.record[record.at];
      if (tile.at.job != Job::tiles) return;
      for (int r = 0; r < (a.plan.symmetric ? 2 : 1); ++r, queue.advance()) {
        mbarrier_wait(shared.queue_full + queue.at, queue.parity);
        int before = 0;  // hits of the warps before this one: all threads take turns over the hits of all
        for (int w = 0; w < kMatrixWarps; ++w) {
          const int n = shared.count[queue.at][w], skip = before % threads;
          drain(a, tile.tile, shared.queue[queue.at][w], n, (thread + threads - skip) % threads, threads);
          before += n;
        }
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(shared.queue_empty + queue.at);
      }
      named_barrier(kSelectionBarrier, threads);
      if (thread == 0) tile_done(a, tile.at, tile.tile);
      __syncwarp();
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at);
    }
  }
};

}  // namespace ldreg::cuda
