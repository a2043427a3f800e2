// The tile stage on Hopper: one warp loads, four warpgroups multiply, three warps append candidates, all at the same time.
//
// Contract: as TileStage, but `run` works off tiles until the next ticket is something else, which it leaves in the cursor
// (kLooksAhead), so that operands of the next tile are on their way while this one is filtered. A tile is 128 queries by
// 256 references, or by 128 where half of them is missing: then two warpgroups have nothing to multiply. Roles meet through
// mbarriers only:
//   loader      ticket, dependencies, tensor copies into a ring of kStages x 48 KB; a record of each tile for the others
//   matrix      64 x 128 products a warpgroup in registers; keys to the lists in the first step, later hits into a queue
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
  static constexpr int kThreads = 640, kWidth = 2, kStep = 64, kTogether = 1;
  static constexpr int kMatrixWarps = 16, kSelectionWarps = 3, kStages = 3, kBuffers = 2;
  static constexpr int kQueue = 4096;  // hits there is room for at a time
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
    Sides<kBlock> rows;
    Sides<kWidth * kBlock> columns;
    int found[3];         // hits of this round, of the last and of the next
    int count[kBuffers];  // of the queue
    Hit queue[kBuffers][kQueue];
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
    static constexpr int kSums = 64, kUnroll = kFours, kFoursOfRow = kFours;
    static __device__ int group() { return warp_id() / 4 - 1; }
    static __device__ int row() { return group() % 2 * 64 + wgmma_row(0); }
    static __device__ int column() { return group() / 2 * kBlock + wgmma_column(0); }
    static __device__ int row_step(int) { return 0; }
    static __device__ int column_step(int four) { return four * 8; }
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
    for (int& found : shared.found) found = 0;
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
      const bool is_tile = at.job == Job::tiles;
      if (is_tile) next.tile = tile_at(a, at, ticket);
      const TileAt& tile = next.tile;
      const bool there = is_tile && tile.m[0].there;  // else nobody is waited for, and nothing loaded
      if (there) {
        await_tile(a, at, tile);
        fence_proxy_async();  // what other blocks packed is read by copies
      }
      mbarrier_arrive(shared.record_full + record.at);
      if (!is_tile) return;
      const int x_row = tile.m[0].query_block * kBlock;
      int y_row[kWidth];
#pragma unroll
      for (int h = 0; h < kWidth; ++h)
        y_row[h] = tile.m[h].reference_block * kBlock + int(schedule.base(at));
      for (int c = 0; there && c < a.plan.columns; c += kStep, stage.advance()) {
        mbarrier_wait(shared.empty + stage.at, stage.parity ^ 1);
        uint64_t* full = shared.full + stage.at;
        mbarrier_arrive_expect_tx(full, (tile.m[1].there ? 3 : 2) * kBoxBytes);
        char* to = memory + stage.at * kStageBytes;
        tma_load_2d(x_map, full, to, c, x_row);
        tma_load_2d(y_map, full, to + kBoxBytes, c, y_row[0]);
        if (tile.m[1].there) tma_load_2d(y_map, full, to + 2 * kBoxBytes, c, y_row[1]);
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
    Turn<3> found;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at, record.parity);
      const Record& tile = shared.record[record.at];
      if (tile.at.job != Job::tiles) return;
      float sum[Layout::kSums] = {};  // else the registers would count as in use since the last tile, through every call
      int previous = 0;
      const bool there = tile.tile.m[0].there, mine = tile.tile.m[group / 2].there;
      Known side;
      if (there) side = look_up(a, tile.tile, thread);  // under way while the product is
      for (int c = 0; there && !mine && c < a.plan.columns; c += kStep, stage.advance()) {
        mbarrier_wait(shared.full + stage.at, stage.parity);
        if (lane_id() == 0) mbarrier_arrive(shared.empty + stage.at);
      }
      for (int c = 0; mine && c < a.plan.columns; c += kStep) {
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
      if (mine && lane_id() == 0) mbarrier_arrive(shared.empty + previous);

      if (thread < kWidth * kBlock) put_side(a, tile.tile, side, thread, shared.columns);
      else if (thread < kSides) put_side(a, tile.tile, side, thread - kWidth * kBlock, shared.rows);
      matrix_barrier();
      round<false>(a, tile.tile, thread, sum, shared, queue, found);
      if (a.plan.symmetric) round<true>(a, tile.tile, thread, sum, shared, queue, found);
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at);
    }
  }

  static constexpr int kMatrixThreads = kMatrixWarps * kWarp, kMatrixBarrier = 8, kSelectionBarrier = 9;
  static __device__ void matrix_barrier() { named_barrier(kMatrixBarrier, kMatrixThreads); }

  // What the sides of the tile are made of: 384 of the 512 threads look something up. What it waits for has happened: the
  // loader shows a tile to the others only then.
  static constexpr int kSides = (kWidth + 1) * kBlock;
  static __device__ __forceinline__ Known look_up(const Arguments& a, const TileAt& tile, int thread) {
    if (thread < kWidth * kBlock) return column_known(a, tile, thread);
    if (thread < kSides) return row_known(a, tile, thread - kWidth * kBlock);
    return {};
  }

  // A round of the queue: hits for the lists of the queries or, if kBack, of the references. After its barrier nobody
  // reads the sides any more for it.
  template <bool kBack>
  static __device__ __forceinline__ void round(const Arguments& a, const TileAt& tile, int thread,
                                               const float (&sum)[Layout::kSums], Shared& shared, Turn<kBuffers>& queue,
                                               Turn<3>& found) {
    const Meeting& m = tile.m[Layout::group() / 2];
    Hits hits;
    if (kBack ? m.back : m.there) {
      if (tile.first_step) place_keys<Layout, kBack>(a, tile, shared.rows, shared.columns, sum);
      else hits = find_hits<Layout, kBack>(shared.rows, shared.columns, sum);
    }
    int place = reserve(hits, shared.found + found.at);
    matrix_barrier();
    int n = shared.found[found.at];
    found.advance();
    if (thread == 0) shared.found[(found.at + 1) % 3] = 0;  // the last round's: everyone has read it
    mbarrier_wait(shared.queue_empty + queue.at, queue.parity ^ 1);
    Hit* hit = shared.queue[queue.at];
    while (n > 0) {
      push_hits<Layout, kQueue>(sum, hits, kBack, place, hit);
      if (n <= kQueue) break;
      matrix_barrier();  // a flood: the three warps would take too long
      drain<2>(a, tile, hit, kQueue, thread, kMatrixThreads);
      matrix_barrier();
      n -= kQueue, place -= kQueue;
    }
    if (thread == 0) shared.count[queue.at] = n;
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(shared.queue_full + queue.at);
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
        drain<4>(a, tile.tile, shared.queue[queue.at], shared.count[queue.at], thread, threads);
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
