// The tile stage on Hopper: one warp loads, four warpgroups multiply, three warps append candidates, all at the same time.
//
// Contract: as TileStage, but `run` works off tiles until the next ticket is something else, which it leaves in the cursor
// (kLooksAhead), so that operands of the next tile are on their way while this one is filtered. A tile is 128 queries by
// 256 references, or by 128 where half of them is missing: then two warpgroups have nothing to multiply. Roles meet through
// mbarriers only:
//   loader      ticket, dependencies, tensor copies into a ring of boxes of 16 KB; a record of each tile for the others
//   matrix      64 x 128 products a warpgroup in registers; keys to the lists in the first step, later hits into a queue
//   selection   queues to lists; counts the tile as done
// Four warpgroups, so that 64 sums a thread fit without setmaxnreg: the compiler cannot deal registers out inside the loop
// over jobs (it then serialises wgmma).
//
// A step is 64 features: three boxes, one of queries and two of references. What the tiles wait for is L2, 48 KB a step, so
// where queries are narrow and tiles many (plan.kept) a ticket is a run of tiles of one block of queries, whose boxes all stay
// in shared memory: 32 KB a step. The ring is then of four boxes and more, three of them in what else is the queue's.
#pragma once

#include "dense.h"
#include "hopper.h"
#include "tile.h"

namespace ldreg::cuda {

#if !defined(LDREG_HOPPER)
#define LDREG_HOPPER 0
#endif

struct HopperTileStage {
  static constexpr bool kLooksAhead = true, kCompiled = LDREG_HOPPER, kPairsOnly = false, kBulk = kCompiled;
  static constexpr int kThreads = 640, kWidth = 2, kStep = 64, kDenseThreads = 512,
                       kDenseBytes = DenseShape<float, kDenseThreads>::kBytes;
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

  // Where a role stands in a ring of two buffers; the parity flips whenever it comes round. One register.
  struct Turn {
    unsigned n = 0;
    __device__ int at() const { return n % kBuffers; }
    __device__ uint32_t parity() const { return n / kBuffers % 2; }
    __device__ void advance() { ++n; }
  };

  // The same in the ring of boxes.
  class Place {
   public:
    __device__ int at() const { return packed_ & 15; }
    __device__ uint32_t parity() const { return packed_ >> 4; }
    __device__ void advance(int by, int slots) {
      packed_ += by;
      if (at() >= slots) packed_ = (packed_ - slots) ^ 16;
    }

   private:
    int packed_ = 0;  // registers are short
  };

  // Boxes in the order of: the queries' that stay, the ring's. Offset into the stage's memory.
  static __device__ int box(int i) { return i < kBoxes ? i * kBoxBytes : kEnd - (i - kBoxes + 1) * kBoxBytes; }
  static __device__ int slots_of(const Arguments& a) { return a.plan.kept > 0 ? kBoxes + kMoreBoxes - a.plan.kept : kBoxes; }

  // The queue is filled once for each direction of a tile.
  static __device__ int rounds(const Arguments& a) { return a.plan.symmetric ? 2 : 1; }
  static __device__ Turn queue_turn(const Arguments& a, Turn record, int round) { return {record.n * rounds(a) + round}; }

  static __device__ int queue_room(const Arguments& a) { return a.plan.kept > 0 ? kKeptQueue : kQueue; }
  static __device__ Hit* queue_of(const Arguments& a, Shared& shared, int buffer) {
    return shared.queue[0] + buffer * queue_room(a);
  }

  static __device__ int matrix_thread() { return thread_id() - kTeam; }  // the warpgroups come after one of other roles

  // Warpgroups stand 2 x 2: 64 rows, and one of the two blocks of references.
  struct Layout {
    static constexpr int kSums = 64, kUnroll = kFours, kFoursOfRow = kFours;
    static __device__ int group() { return warp_id() / 4 - 1; }
    static __device__ int row() {
      const unsigned thread = matrix_thread();
      return thread / kTeam % 2 * 64 + wgmma_row(thread, 0);
    }
    static __device__ int column() {
      const unsigned thread = matrix_thread();
      return thread / (2 * kTeam) * kBlock + wgmma_column(thread, 0);
    }
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
    for (int i = 0; i < kBoxes + kMoreBoxes; ++i)
      mbarrier_init(shared.full + i, 1), mbarrier_init(shared.empty + i, kMatrixWarps);
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
    const int slots = slots_of(a), kept = a.plan.kept;
    Place ring;
    // No copy of rows that are not there: the box is waited for and released like all.
    const auto load_box = [&](const CUtensorMap* map, int column, int row) {
      mbarrier_wait(shared.empty + ring.at(), ring.parity() ^ 1);
      uint64_t* full = shared.full + ring.at();
      if (row < 0) {
        mbarrier_arrive(full);
      } else {
        mbarrier_arrive_expect_tx(full, kBoxBytes);
        tma_load_2d(map, full, memory + box(kept + ring.at()), column, row);
      }
      ring.advance(1, slots);
    };
    Turn record;
    uint32_t kept_parity = 1;
    int number = 0, run = at.job == Job::tiles ? schedule.run(at, ticket) : 0;  // the tile of the ticket's, of so many
    bool fresh = true;                                                          // its queries are yet to be loaded
    for (;; record.advance()) {
      mbarrier_wait(shared.record_empty + record.at(), record.parity() ^ 1);
      Record& next = shared.record[record.at()];
      next.at = at;
      const bool is_tile = at.job == Job::tiles;
      if (is_tile) next.tile = tile_at(a, at, ticket, number);
      const TileAt& tile = next.tile;
      const bool there = is_tile && tile.m[0].there;  // else nobody is waited for, and nothing loaded
      const bool keeps = kept > 0 && fresh && there;
      if (keeps) kept_parity ^= 1;
      next.kept = kept_parity;
      if (there) {
        await_tile(a, at, tile);
        fence_proxy_async();  // what other blocks packed is read by copies
      }
      mbarrier_arrive(shared.record_full + record.at());
      if (!is_tile) return;
      const int x_row = tile.m[0].query_block * kBlock + int(schedule.query_base(at));
      int y_row[kWidth];
#pragma unroll
      for (int h = 0; h < kWidth; ++h)
        y_row[h] = tile.m[h].there ? tile.m[h].reference_block * kBlock + int(schedule.base(at)) : -1;
      if (keeps) {
        // Nobody reads the queries before once all boxes of the ring are free.
        Place all = ring;
        for (int i = 0; i < slots; ++i, all.advance(1, slots)) mbarrier_wait(shared.empty + all.at(), all.parity() ^ 1);
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
    Place ring;
    Turn record;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at(), record.parity());
      const Record& tile = shared.record[record.at()];
      if (tile.at.job != Job::tiles) return;
      float sum[Layout::kSums] = {};  // else the registers would count as in use since the last tile, through every call
      const bool there = tile.tile.m[0].there, mine = tile.tile.m[group / 2].there;
      Known side;
      if (there) side = look_up(a, tile.tile);  // under way while the product is
      if (there && a.plan.kept > 0) mbarrier_wait(&shared.kept, tile.kept);
      for (int c = 0; there && !mine && c < a.plan.columns; c += kStep) {
        // One lane frees the box for all: two fillings later, one that is behind would wait for that parity for ever. So the lanes
        // meet, in a vote, because beside __syncwarp, which also orders memory, ptxas spills.
        await_step(a, shared, ring, group);
        if (__all_sync(kAllLanes, true)) release(a, shared, ring, group);
        ring.advance(a.plan.kept > 0 ? kWidth : kOfStep, slots_of(a));
      }
      Place previous;
      for (int c = 0; mine && c < a.plan.columns; c += kStep) {
        await_step(a, shared, ring, group);
        const int kept = a.plan.kept, y = kept + of_references(a, ring, group).at();
        const uint64_t x_at = wgmma_descriptor(memory + opaque(box(kept > 0 ? c / kStep : ring.at()))) + group % 2 * 512;
        const uint64_t y_at = wgmma_descriptor(memory + opaque(box(y)));
        warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) wgmma_m64n128k16(sum, x_at + 2 * k, y_at + 2 * k, c > 0 || k > 0);
        warpgroup_commit();
        if (kept > 0) {
          warpgroup_wait<0>();  // the ring is short: the other warpgroups go on meanwhile
          release(a, shared, ring, group);
        } else {
          warpgroup_wait<1>();  // this step's products go on; those of the one before have read their boxes
          if (c > 0) release(a, shared, previous, group);
          previous = ring;
        }
        ring.advance(kept > 0 ? kWidth : kOfStep, slots_of(a));
      }
      warpgroup_finish(sum);
      if (mine && a.plan.kept == 0) release(a, shared, previous, group);

      put_sides(a, tile.tile, side, shared);
      matrix_barrier();
      round<false>(a, tile.tile, sum, shared, record);
      if (a.plan.symmetric) round<true>(a, tile.tile, sum, shared, record);
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at());
    }
  }

  static constexpr int kMatrixThreads = kMatrixWarps * kWarp, kMatrixBarrier = 8, kSelectionBarrier = 9;
  static __device__ void matrix_barrier() { named_barrier(kMatrixBarrier, kMatrixThreads); }

  // Where in the ring a warpgroup's box of references is, in the step that begins at `step`.
  static __device__ __forceinline__ Place of_references(const Arguments& a, Place step, int group) {
    step.advance((a.plan.kept > 0 ? 0 : 1) + group / 2, slots_of(a));
    return step;
  }
  static __device__ __forceinline__ void await_step(const Arguments& a, Shared& shared, Place step, int group) {
    const Place y = of_references(a, step, group);
    if (a.plan.kept == 0) mbarrier_wait(shared.full + step.at(), step.parity());
    mbarrier_wait(shared.full + y.at(), y.parity());
  }
  // Half of the warps read a box of references, so they arrive twice.
  static __device__ __forceinline__ void release(const Arguments& a, Shared& shared, Place step, int group) {
    if (lane_id() != 0) return;
    if (a.plan.kept == 0) mbarrier_arrive(shared.empty + step.at());
    mbarrier_arrive_times(shared.empty + of_references(a, step, group).at(), 2);
  }

  // What the sides of the tile are made of: 384 of the 512 threads look something up. What it waits for has happened: the
  // loader shows a tile to the others only then.
  static constexpr int kSides = (kWidth + 1) * kBlock;
  static __device__ __forceinline__ Known look_up(const Arguments& a, const TileAt& tile) {
    const int thread = matrix_thread();
    if (thread < kWidth * kBlock) return column_known(a, tile, thread);
    if (thread < kSides) return row_known(a, tile, thread - kWidth * kBlock);
    return {};
  }
  static __device__ __forceinline__ void put_sides(const Arguments& a, const TileAt& tile, const Known& side, Shared& shared) {
    const int thread = matrix_thread();
    if (thread < kWidth * kBlock) put_side(a, tile, side, thread, shared.columns);
    else if (thread < kSides) put_side(a, tile, side, thread - kWidth * kBlock, shared.rows);
  }

  // A round of the queue: hits for the lists of the queries or, if kBack, of the references. After its barrier nobody
  // reads the sides any more for it.
  template <bool kBack>
  static __device__ __forceinline__ void round(const Arguments& a, const TileAt& tile, const float (&sum)[Layout::kSums],
                                               Shared& shared, Turn record) {
    const Turn queue = queue_turn(a, record, kBack);
    const Meeting& m = tile.m[Layout::group() / 2];
    Hits hits;
    if (kBack ? m.back : m.there) {
      if (tile.first_step) place_keys<Layout, kBack>(a, tile, shared.rows, shared.columns, sum);
      else hits = find_hits<Layout, kBack>(shared.rows, shared.columns, sum);
    }
    int* found = shared.found + queue.n % 3;
    int place = reserve(hits, found);
    matrix_barrier();
    int n = *found;
    if (matrix_thread() == 0) shared.found[(queue.n + 2) % 3] = 0;  // the last round's: everyone has read it
    mbarrier_wait(shared.queue_empty + queue.at(), queue.parity() ^ 1);
    Hit* hit = queue_of(a, shared, queue.at());
    while (n > 0) {
      const int room = queue_room(a);
      push_hits<Layout>(sum, hits, kBack, place, hit, room);
      if (n <= room) break;
      matrix_barrier();  // a flood: the three warps would take too long
      drain<2>(a, tile, hit, room, matrix_thread(), kMatrixThreads);
      matrix_barrier();
      n -= room, place -= room;
    }
    if (matrix_thread() == 0) shared.count[queue.at()] = n;
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(shared.queue_full + queue.at());
  }

  // Three warps.
  static __device__ __forceinline__ void select(const Arguments& a, Shared& shared) {
    const int thread = thread_id() - kWarp, threads = kSelectionWarps * kWarp;
    Turn record;
    for (;; record.advance()) {
      mbarrier_wait(shared.record_full + record.at(), record.parity());
      const Record& tile = shared.record[record.at()];
      if (tile.at.job != Job::tiles) return;
      for (int r = 0; r < rounds(a); ++r) {
        const Turn queue = queue_turn(a, record, r);
        mbarrier_wait(shared.queue_full + queue.at(), queue.parity());
        drain<4>(a, tile.tile, queue_of(a, shared, queue.at()), shared.count[queue.at()], thread, threads);
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(shared.queue_empty + queue.at());
      }
      named_barrier(kSelectionBarrier, threads);
      if (thread == 0) tile_done(a, tile.at, tile.tile);
      __syncwarp();
      if (lane_id() == 0) mbarrier_arrive(shared.record_empty + record.at());
    }
  }
};

}  // namespace ldreg::cuda
