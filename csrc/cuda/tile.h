// The distance tile: sums of products to candidates. What follows every main loop, whichever tensor core it used.
//
// Contract: a main loop `Loop` leaves every thread with kSums products of packed rows, of which Loop::row(s) and
// Loop::column(s) say where in the tile they belong. In the first step every key goes to its place in the query's list;
// later, keys that pass the threshold (threshold.h) go into a warp's queue in shared memory, from which threads append them
// to the lists, each waiting for the answer to an atomic of its own. If the plan is symmetric, the same product offers
// row i to column j's list as well.
#pragma once

#include "threshold.h"

namespace ldreg::cuda {

// One block of queries meets one of references.
struct Meeting {
  int query_block, reference_block;  // of the panel; of all, by position
  bool there, back;                  // whether queries get the references, and the references the queries
  int place, place_back;             // of the first step: where in a list the block begins
};

__device__ inline Meeting meeting(const Arguments& a, const Cursor& at, int block, int e) {
  const Schedule schedule(a);
  const int blocks = schedule.references(at), first = schedule.first_reference(at);
  Meeting m{schedule.first_query(at) + block, first + e, e < at.meets, false, e * kBlock, 0};
  if (!a.plan.symmetric) return m;
  if (!schedule.among_themselves(at)) return m.back = m.there, m;
  const bool opposite = 2 * e == blocks && e > 0;  // half way round, block i + e meets block i itself
  m.reference_block = first + (block + e) % blocks;
  m.there = m.there && !(opposite && block >= e);
  m.back = m.there && e > 0;
  m.place = e == 0 ? 0 : (2 * e - 1) * kBlock;
  m.place_back = opposite ? m.place : 2 * e * kBlock;
  return m;
}

// A hit: row and column in the tile, and whose list it is for.
struct Hit {
  unsigned where;  // row | column << 8 | (1 << 16 if the column is the query)
  int key;
};

constexpr int kQueue = 256;  // hits that a warp has room for at a time

// Where the tile's rows and columns are: one block of queries, and up to two of references.
struct TileAt {
  Meeting m[2];
  int panel_rows;
  bool first_step;
  __device__ int slot(int row) const { return m[0].query_block * kBlock + row; }
  __device__ int position(int column) const {
    return m[column / kBlock].reference_block * kBlock + column % kBlock;
  }
};

// Sides of a block's rows; dead rows admit nothing, and nothing admits them.
__device__ inline Side query_side(const Arguments& a, const TileAt& at, int slot, bool asked) {
  Side side{INFINITY, INFINITY, 0, kAdmitNone, 0};
  if (asked && !at.first_step && slot < at.panel_rows) side.limit = a.s.limit[slot], side.reach = a.s.reach[slot];
  return side;
}

__device__ inline void reference_side(const Arguments& a, int position, Side& side) {
  side.norm = side.bias = INFINITY, side.residual = 0;
  if (position >= a.p.N) return;
  side.norm = side.bias = a.s.y_norm[position];
  if (!a.p.exact) return;
  side.residual = a.s.y_residual[position];
  side.bias -= slack_of(a, side.norm, side.residual);
}

// By `threads` threads, of which this is number `thread`: queue[0..n) to the lists. In the first step to the place of the
// reference, kNever for those that are no candidates.
__device__ inline void drain(const Arguments& a, const TileAt& at, const Hit* queue, int n, int thread, int threads) {
  for (int h = thread; h < n; h += threads) {
    const Hit hit = queue[h];
    const int row = hit.where & 255, column = hit.where >> 8 & 255;
    // Symmetric, slots are positions: a column is a query, too, and a row its reference.
    const bool back = hit.where >> 16;
    const int query = back ? at.position(column) : at.slot(row), reference = back ? at.slot(row) : at.position(column);
    if (query >= at.panel_rows) continue;
    int key = hit.key;
    unsigned place;
    if (at.first_step) {
      const Meeting& m = at.m[column / kBlock];
      if (!(back ? m.back : m.there)) continue;
      place = back ? m.place_back + row : m.place + column % kBlock;
      if (!(from_sortable(key) < kAdmitAll)) key = kNever;
    } else {
      place = atomicAdd(a.s.count + query, 1u);
    }
    if (place < unsigned(a.plan.cap)) a.s.list[int64_t(query) * a.plan.cap + place] = {key, reference};
  }
}

// Those of 32 products from `part` on that pass, as bits. Sums: sum[s] is this thread's s-th product. kBack: the columns
// are the queries.
template <class Loop, bool kBack, class Sums>
__device__ __forceinline__ unsigned hits_of(const Side* rows, const Side* columns, const Sums& sum, int part) {
  unsigned hits = 0;
  const int first_row = opaque(Loop::row(0)), first_column = opaque(Loop::column(0));
#pragma unroll(Loop::kUnroll)
  for (int s = 0; s < 32; ++s) {
    const Side& row = rows[first_row + Loop::row_step(part + s)];
    const Side& column = columns[first_column + Loop::column_step(part + s)];
    const Side& query = kBack ? column : row;
    const Side& reference = kBack ? row : column;
    const float lower = minus_twice(reference.bias, sum[part + s]) - reference.residual * query.reach;
    hits |= unsigned(lower <= query.limit) << s;
    if (s % 4 == 3) keep_order();
  }
  return hits;
}

// Push what passes of the 64 products from `part` on, in the first step everything, by a warp into its own queue. Returns
// how many hits that leaves there; what the queue had no room for is in the lists by then.
template <class Loop, bool kBack, class Sums>
__device__ __forceinline__ int push_hits(const Arguments& a, const TileAt& at, const Side* rows, const Side* columns,
                                         const Sums& sum, int part, Hit* queue, int room = kQueue) {
  unsigned low = ~0u, high = ~0u;
  if (!at.first_step) {
    low = hits_of<Loop, kBack>(rows, columns, sum, part);
    high = hits_of<Loop, kBack>(rows, columns, sum, part + 32);
  }
  const int mine = __popc(low) + __popc(high);
  int before = mine;  // with those of the lanes below, once the loop is through
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, lanes);
    if (lane_id() >= lanes) before += other;
  }
  const int total = __shfl_sync(kAllLanes, before, kWarp - 1);
  for (int window = 0;; window += room) {  // once, but for a flood
    int place = before - mine - window;
    const unsigned now_low = opaque(int(low)), now_high = opaque(int(high));  // an array would be on the stack
    const int row = opaque(Loop::row(0)), column = opaque(Loop::column(0));
#pragma unroll(Loop::kUnroll)
    for (int s = 0; s < 64; ++s) {
      if (!((s < 32 ? now_low : now_high) >> s % 32 & 1)) continue;
      const int r = row + Loop::row_step(part + s), c = column + Loop::column_step(part + s);
      const float key = minus_twice((kBack ? rows[r] : columns[c]).norm, sum[part + s]);
      if (unsigned(place) < unsigned(room)) queue[place] = {unsigned(r | c << 8 | (kBack ? 1 << 16 : 0)), sortable(key)};
      ++place;
      if (s % 4 == 3) keep_order();
    }
    __syncwarp();
    if (total - window <= room) return total - window;
    drain(a, at, queue, room, lane_id(), kWarp);
    __syncwarp();
  }
}

// What a tile has to wait for, by one thread.
__device__ inline void await_tile(const Arguments& a, const Cursor& at, const TileAt& tile) {
  const Schedule schedule(a);
  const unsigned* s = a.s.state;
  wait_for(s + kPackedReferences + at.buffer, at.packs[at.buffer]);
  if (a.plan.macros) wait_for(s + kPackedReferences + at.stays, at.packs[at.stays]);
  wait_for(s + kPackedQueries, at.queries);
  if (at.step == 0) return;
  for (int h = 0; h < a.plan.width; ++h) {
    if (!tile.m[h].there) continue;
    const int query = tile.m[h].query_block, reference = tile.m[h].reference_block;
    wait_for(a.s.ready + schedule.block_of(at.panel, query), schedule.compactions(at.panel, query, at.queries_compacted));
    if (tile.m[h].back) wait_for(a.s.ready + reference, schedule.compactions(at.panel, reference, at.references_compacted));
  }
}

// By one thread, once all candidates of the tile are in their lists.
__device__ inline void tile_done(const Arguments& a, const Cursor& at, const TileAt& tile) {
  const Schedule schedule(a);
  device_fence();
  for (int h = 0; h < a.plan.width; ++h) {
    if (tile.m[h].there) atomicAdd(a.s.arrivals + schedule.block_of(at.panel, tile.m[h].query_block), 1u);
    if (tile.m[h].back) atomicAdd(a.s.arrivals + tile.m[h].reference_block, 1u);
  }
  atomicAdd(a.s.state + kTiled + at.buffer, 1u);
  if (!schedule.among_themselves(at)) atomicAdd(a.s.state + kTiled + at.stays, 1u);
}

// The tile of a ticket, or that of a run with this number.
__device__ inline TileAt tile_at(const Arguments& a, const Cursor& at, unsigned ticket, int number = 0) {
  const Schedule schedule(a);
  const int index = int(ticket - at.first), runs = schedule.runs(at);
  const int first = at.met + (index % runs * a.plan.run + number) * a.plan.width;
  TileAt tile;
  tile.panel_rows = schedule.bottom(at.panel) - schedule.top(at.panel), tile.first_step = at.step == 0;
  for (int h = 0; h < 2; ++h)
    tile.m[h] = meeting(a, at, index / runs, h < a.plan.width ? first + h : at.meets);
  return tile;
}

}  // namespace ldreg::cuda
