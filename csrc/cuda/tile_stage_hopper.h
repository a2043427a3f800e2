// The tile stage on Hopper: one warp loads, four warpgroups multiply, three warps append candidates, all at the same time.
//
// Contract: as TileStage, but `run` works off tiles until the next ticket is something else, which it leaves in the cursor
// (kLooksAhead), so that operands of the next tile are on their way while this one is filtered. A tile is 128 queries by
// 256 references. Roles meet through mbarriers only:
//   loader      ticket, dependencies, tensor copies into a ring of boxes of 16 KB; a record of each tile for the others
//   matrix      64 x 128 products a warpgroup in registers; hits into the warp's queue
//   selection   queues to lists; counts the tile as done
// Four warpgroups, so that 64 sums a thread fit without setmaxnreg: the compiler cannot deal registers out inside the loop
// over jobs (it then serialises wgmma).
//
// A step is 64 features: three boxes, one of queries and two of references. What the tiles wait for is L2, 48 KB a step, so
// where queries are narrow and tiles many (plan.kept) a ticket is a run of tiles of one block of queries, whose boxes all stay
// in shared memory: 32 KB a step. The ring is then of four boxes and more, three of them in what else is the queue's.
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
  static constexpr int kMatrixWarps = 16, kSelectionWarps = 3, kBuffers = 2;
  static constexpr int kQueue = 4096;  // hits there is room for at a time
  static constexpr int kBoxBytes = kBlock * kStep * 2, kOfStep = 1 + kWidth, kBoxes = 3 * kOfStep, kMoreBoxes = 3;
  static constexpr int kKeptColumns = (kBoxes + kMoreBoxes - 4) * kStep;

  struct Record {  // a tile, from the loader to the others; at.job says whether there is one
    Cursor at;
    TileAt tile;
    uint32_t kept;  // parity of the phase that brings its queries, if they stay
  };

  struct Shared {
    uint64_t full[kBoxes + kMoreBoxes], empty[kBoxes + kMoreBoxes];  // of the ring
    uint64_t kept;                                                   // full: the queries that stay
    uint64_t record_full[kBuffers], record_empty[kBuffers];
    uint64_t queue_full[kBuffers], queue_empty[kBuffers];
    Record record[kBuffers];
    Sides<kBlock> rows;
    Sides<kWidth * kBlock> columns;
    int found[3];         // hits of this round, of the last and of the next
    int count[kBuffers];  // of the queue
    Hit queue[kBuffers][kQueue];
  };
  static constexpr int kSharedBytes = kBoxes * kBoxBytes + int(sizeof(Shared)), kEnd = kSharedBytes / 1024 * 1024;
  static constexpr int kKeptQueue =  // hits there is room for then
      (int(sizeof(Shared::queue)) - kMoreBoxes * kBoxBytes - 1024) / int(sizeof(Hit)) / kBuffers;
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

  // The same in the ring of boxes.
  struct Place {
    int at = 0;
    uint32_t parity = 0;
    __device__ void advance(int by, int slots) {
      at += by;
      if (at >= slots) at -= slots, parity ^= 1;
    }
  };

  // Boxes in the order of: the queries' that stay, the ring's. Offset into the stage's memory.
  static __device__ int box(int i) { return i < kBoxes ? i * kBoxBytes : kEnd - (i - kBoxes + 1) * kBoxBytes; }
  static __device__ int slots(const Arguments& a) { return a.plan.kept > 0 ? kBoxes + kMoreBoxes - a.plan.kept : kBoxes; }

  static __device__ int queue_room(const Arguments& a) { return a.plan.kept > 0 ? kKeptQueue : kQueue; }
  static __device__ Hit* queue_of(const Arguments& a, Shared& shared, int buffer) {
    return shared.queue[0] + buffer * queue_room(a);
  }

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
    Shared& shared = *reinterpret_cast<Shared*>(memory + kBoxes * kBoxBytes);
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
    for (int i = 0; i < kBoxes + kMoreBoxes; ++i) mbarrier_init(shared.full + i, 1), mbarrier_init(shared.empty + i, kMatrixWarps);
    mbarrier_init(&shared.kept, 1);
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
    const int slots = HopperTileStage::slots(a), kept = a.plan.kept;
    Place ring;
    const auto load_box = [&](const CUtensorMap* map, int column, int row) {
      mbarrier_wait(shared.empty + ring.at, ring.parity ^ 1);
      mbarrier_arrive_expect_tx(shared.full + ring.at, kBoxBytes);
      tma_load_2d(map, shared.full + ring.at, memory + box(kept + ring.at), column, row);
      ring.advance(1, slots);
    };
    Turn<kBuffers> record;
    uint32_t kept_parity = 1;
    int number = 0, run = at.job == Job::tiles ? schedule.run(at, ticket) : 0;  // the tile of the ticket's, of so many
    bool fresh = true;                                                          // its queries are yet to be loaded
    for (;; record.advance()) {
      mbarrier_wait(shared.record_empty + record.at, record.parity ^ 1);
      Record& next = shared.record[record.at];
      next.at = at;
      if (at.job == Job::tiles) next.tile = tile_at(a, at, ticket, number);
      const TileAt& tile = next.tile;
      const bool there = at.job == Job::tiles && (tile.m[0].there || tile.m[1].there);  // else nothing is waited for or loaded
      const bool keeps = kept > 0 && fresh && there;
      if (keeps) kept_parity ^= 1;
      next.kept = kept_parity;
      mbarrier_arrive(shared.record_full + record.at);
      if (at.job != Job::tiles) return;
      if (there) {
        await_tile(a, at, tile);
        fence_proxy_async();  // what other blocks packed is read by copies
      }
      const int x_row = tile.m[0].query_block * kBlock + int(schedule.query_base(at));
      int y_row[kWidth];
#pragma unroll
      for (int h = 0; h < kWidth; ++h)
        y_row[h] = (tile.m[h].there ? tile.m[h].reference_block : tile.m[0].reference_block) * kBlock + int(schedule.base(at));
      if (keeps) {
        // Nobody reads the queries before once all boxes of the ring are free.
        Place all = ring;
        for (int i = 0; i < slots; ++i, all.advance(1, slots)) mbarrier_wait(shared.empty + all.at, all.parity ^ 1);
        mbarrier_arrive_expect_tx(&shared.kept, kept * kBoxBytes);
        for (int i = 0; i < kept; ++i) tma_load_2d(x_map, &shared.kept, memory + box(i), i * kStep, x_row);
        fresh = false;
      }
      for (int c = 0; there && c < a.plan.columns; c += kStep) {
        if (kept == 0) load_box(x_map, c, x_row);
        load_box(y_map, c, y_row[0]);
        load_box(y_map, c, y_row[1]);
      }
      if (++number < run) continue;
      ticket = atomicAdd(a.s.state + kTicket, 1u);
      schedule.seek(at, ticket);
      number = 0, run = at.job == Job::tiles ? schedule.run(at, ticket) : 0, fresh = true;
    }
  }

  // Four warpgroups.
  static __device__ __forceinline__ void multiply(const Arguments& a, int group, char* memory, Shared& shared) {
    const uint64_t operands = wgmma_descriptor(memory);  // in units of 16 bytes
    const int thread = thread_id() - kTeam;
    Place ring;
    Turn<kBuffers> record, queue;
    Turn<3> found;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at, record.parity);
      const Record& tile = shared.record[record.at];
      if (tile.at.job != Job::tiles) return;
      float sum[Layout::kSums] = {};  // else the registers would count as in use since the last tile, through every call
      const bool there = tile.tile.m[0].there || tile.tile.m[1].there;
      if (there && a.plan.kept > 0) mbarrier_wait(&shared.kept, tile.kept);
      int previous = 0;
      for (int c = 0; there && c < a.plan.columns; c += kStep) {
        const int kept = a.plan.kept, slots = HopperTileStage::slots(a);
        Place y = ring;
        y.advance(kept > 0 ? group / 2 : 1 + group / 2, slots);
        if (kept == 0) mbarrier_wait(shared.full + ring.at, ring.parity);
        mbarrier_wait(shared.full + y.at, y.parity);
        const uint64_t x_at = operands + (box(kept > 0 ? c / kStep : ring.at) >> 4) + group % 2 * 512;
        const uint64_t y_at = operands + (box(kept + y.at) >> 4);
        warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) wgmma_m64n128k16(sum, x_at + 2 * k, y_at + 2 * k, c > 0 || k > 0);
        warpgroup_commit();
        if (kept > 0) {
          warpgroup_wait<0>();  // the ring is short: the other warpgroups go on meanwhile
          if (lane_id() == 0) mbarrier_arrive_times(shared.empty + y.at, 2);
        } else {
          warpgroup_wait<1>();  // this step's products go on; those of the one before have read their boxes
          if (c > 0) release(shared, previous, group);
          previous = ring.at;
        }
        ring.advance(kept > 0 ? kWidth : kOfStep, slots);
      }
      warpgroup_finish(sum);
      if (there && a.plan.kept == 0) release(shared, previous, group);

      look_up(a, tile.tile, thread, shared);
      matrix_barrier();
      round<false>(a, tile.tile, thread, sum, shared, queue, found);
      if (a.plan.symmetric) round<true>(a, tile.tile, thread, sum, shared, queue, found);
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at);
    }
  }

  static constexpr int kMatrixThreads = kMatrixWarps * kWarp, kMatrixBarrier = 8, kSelectionBarrier = 9;
  static __device__ void matrix_barrier() { named_barrier(kMatrixBarrier, kMatrixThreads); }

  // The boxes of a step that begins at `at`. Half of the warps read a box of references, so they arrive twice.
  static __device__ __forceinline__ void release(Shared& shared, int at, int group) {
    if (lane_id() != 0) return;
    mbarrier_arrive(shared.empty + at);
    mbarrier_arrive_times(shared.empty + at + 1 + group / 2, 2);
  }


  // Sides of the tile: 384 of the 512 threads have one to look up.
  static __device__ __forceinline__ void look_up(const Arguments& a, const TileAt& tile, int thread, Shared& shared) {
    if (thread < kWidth * kBlock) look_up_column(a, tile, thread, shared.columns);
    else if (thread < (kWidth + 1) * kBlock) look_up_row(a, tile, thread - kWidth * kBlock, shared.rows);
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
    Hit* hit = queue_of(a, shared, queue.at);
    while (n > 0) {
      const int room = queue_room(a);
      push_hits<Layout>(sum, hits, kBack, place, hit, room);
      if (n <= room) break;
      matrix_barrier();  // a flood: the three warps would take too long
      drain<2>(a, tile, hit, room, thread, kMatrixThreads);
      matrix_barrier();
      n -= room, place -= room;
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
        drain<4>(a, tile.tile, queue_of(a, shared, queue.at), shared.count[queue.at], thread, threads);
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
