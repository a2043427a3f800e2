// The distance tile: sums of products to candidates. What follows every main loop, whichever tensor core it used.
//
// Contract: a main loop leaves every thread with kSums products of packed rows, four at a time from two rows, eight apart,
// and two neighbouring columns; `Layout` says which. In the first step every key has its place in the query's list, and
// threads write it there (place_keys). Later, `find_hits` marks the products that pass the threshold (threshold.h),
// `reserve` numbers them through the block, `push_hits` puts them into the block's queue in shared memory, as many as there
// is room for, and `drain` appends them to the lists, each thread waiting for the answers to atomics of its own. If the plan
// is symmetric, the same product offers row i to column j's list as well.
#pragma once

#include <type_traits>

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

// A hit: row and column in the tile, whose list it is for, and the product.
struct alignas(8) Hit {
  unsigned where;  // row | column << 8, and kToColumn if the column is the query
  float product;
};

constexpr unsigned kToColumn = 1 << 16;
constexpr int kFours = 16;  // of the products of a thread: two rows, eight apart, by two neighbouring columns

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

// What the tests need of the tile's rows or of its columns, in shared memory.
template <int kCount>
struct alignas(16) Sides {
  AsReference reference[kCount];
  AsQuery query[kCount];
};

// What is known of a row or column, as loaded: what it takes can be under way while products are. Of dead ones nothing is
// loaded; they admit nothing, and nothing admits them.
struct Known {
  Packed packed{INFINITY, 0};
  AsQuery query{kAdmitNone, 0};
};

__device__ inline Known known_of(const Arguments& a, const TileAt& at, int slot, bool queries, bool references) {
  Known known;
  if (references && slot < a.p.N) known.packed = a.s.y_packed[slot];
  if (queries && !at.first_step && slot < at.panel_rows) known.query = {a.s.limit[slot], a.s.reach[slot]};
  return known;
}

// Of the i-th column; of the i-th row.
__device__ inline Known column_known(const Arguments& a, const TileAt& at, int i) {
  const Meeting& m = at.m[i / kBlock];
  return known_of(a, at, at.position(i), m.back, m.there);
}

__device__ inline Known row_known(const Arguments& a, const TileAt& at, int i) {
  return known_of(a, at, at.slot(i), at.m[0].there, at.m[0].back || at.m[1].back);
}

// To the sides. In the first step there are no thresholds, and keys are asked for.
template <int kCount>
__device__ inline void put_side(const Arguments& a, const TileAt& at, const Known& known, int i, Sides<kCount>& sides) {
  const Packed y = known.packed;
  const bool plain = at.first_step || !a.p.exact;
  sides.reference[i] = {plain ? y.norm : y.norm - slack_of(a, y), y.residual};  // NaN of Inf: as good, nothing passes
  sides.query[i] = known.query;
}

// What a test needs of the tile's rows and of its columns; kBack: the columns are the queries.
template <bool kBack> using OfRow = std::conditional_t<kBack, AsReference, AsQuery>;
template <bool kBack> using OfColumn = std::conditional_t<kBack, AsQuery, AsReference>;

// Two neighbours, by one load; the first has an even index.
template <class Item>
__device__ inline void load_two(const Item* items, int i, Item (&out)[2]) {
  const float4 both = *reinterpret_cast<const float4*>(items + i);
  out[0] = {both.x, both.y}, out[1] = {both.z, both.w};
}

__device__ inline Candidate candidate(float norm, float product, int position) {
  const float key = minus_twice(norm, product);
  return {key < kAdmitAll ? sortable(key) : kNever, position};
}

// The first step: every key to its place, kNever for those that are no candidates. kBack: the columns are the queries.
template <class Layout, bool kBack, class Rows, class Columns, class Sums>
__device__ __forceinline__ void place_keys(const Arguments& a, const TileAt& at, const Rows& rows, const Columns& columns,
                                           const Sums& sum) {
  struct alignas(16) Two {
    Candidate v[2];
  };
  const int row = opaque(Layout::row()), column = opaque(Layout::column());
  const int slot = at.slot(row), position = at.position(column);
  const Meeting& m = at.m[column / kBlock];
  char* lists = reinterpret_cast<char*>(global(a.s.list) + (kBack ? m.place_back + row : m.place + column % kBlock));
  const unsigned pitch = a.plan.cap * unsigned(sizeof(Candidate));
  const auto of_query = [&](int query) { return reinterpret_cast<Candidate*>(lists + uint64_t(unsigned(query)) * pitch); };
#pragma unroll(Layout::kUnroll)
  for (int g = 0; g < kFours; ++g) {
    const int r = Layout::row_step(g), c = Layout::column_step(g);
    if constexpr (kBack) {
      const float bias[2] = {rows.reference[row + r].bias, rows.reference[row + r + 8].bias};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int query = opaque(position) + c + h, i = slot + r;  // else all addresses would be known before the first store
        if (query >= at.panel_rows) continue;
        Candidate* to = of_query(query) + r;
        to[0] = candidate(bias[0], sum[4 * g + h], i), to[8] = candidate(bias[1], sum[4 * g + 2 + h], i + 8);
      }
    } else if (g % Layout::kFoursOfRow == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int query = opaque(slot) + r + 8 * h;
        if (query >= at.panel_rows) continue;
        Candidate* to = of_query(query);
#pragma unroll(Layout::kUnroll)
        for (int f = 0; f < Layout::kFoursOfRow; ++f) {
          const int s = 4 * (g + f) + 2 * h, step = Layout::column_step(g + f), j = position + step;
          AsReference y[2];
          load_two(columns.reference, column + step, y);
          *reinterpret_cast<Two*>(to + step) = {candidate(y[0].bias, sum[s], j), candidate(y[1].bias, sum[s + 1], j + 1)};
          keep_order();
        }
      }
    }
    keep_order();
  }
}

// Which of a thread's products pass, as bits.
struct Hits {
  unsigned low = 0, high = 0;
};

template <class Layout, bool kBack, class Rows, class Columns, class Sums>
__device__ __forceinline__ Hits find_hits(const Rows& rows, const Columns& columns, const Sums& sum) {
  const OfRow<kBack>* of_rows;
  const OfColumn<kBack>* of_columns;
  if constexpr (kBack) of_rows = rows.reference, of_columns = columns.query;
  else of_rows = rows.query, of_columns = columns.reference;
  const int first_row = opaque(Layout::row()), first_column = opaque(Layout::column());
  Hits hits;
  OfRow<kBack> row[2];
#pragma unroll(Layout::kUnroll)
  for (int g = 0; g < kFours; ++g) {
    const int r = first_row + Layout::row_step(g);
    if (g % Layout::kFoursOfRow == 0) row[0] = of_rows[r], row[1] = of_rows[r + 8];
    OfColumn<kBack> column[2];
    load_two(of_columns, first_column + Layout::column_step(g), column);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (passes(row[e / 2], column[e % 2], sum[4 * g + e])) (g < 8 ? hits.low : hits.high) |= 1u << (4 * g + e) % 32;
    keep_order();
  }
  return hits;
}

// Numbers the hits of a block. By a warp: returns the first number of this lane's. total: so far, in shared memory.
__device__ __forceinline__ int reserve(Hits hits, int* total) {
  const int mine = __popc(hits.low) + __popc(hits.high);
  if (!__any_sync(kAllLanes, mine)) return 0;
  int before = mine;  // with those of the lanes below, once the loop is through
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, lanes);
    if (lane_id() >= lanes) before += other;
  }
  int first = 0;
  if (lane_id() == kWarp - 1) first = atomicAdd(total, before);
  return __shfl_sync(kAllLanes, first, kWarp - 1) + before - mine;
}

// This thread's hits to queue[place], [place + 1] ..., as far as these are in queue[0..room).
template <class Layout, class Sums>
__device__ __forceinline__ void push_hits(const Sums& sum, Hits hits, bool back, int place, Hit* queue, int room) {
  const unsigned low = opaque(int(hits.low)), high = opaque(int(hits.high));  // else their bits would be known already
  const unsigned first = opaque(Layout::row() | Layout::column() << 8 | (back ? kToColumn : 0));
#pragma unroll(Layout::kUnroll)
  for (int g = 0; g < kFours; ++g) {
    const unsigned four = (g < 8 ? low : high) >> g % 8 * 4 & 15;
    if (four == 0) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!(four >> e & 1)) continue;
      const int step = (Layout::row_step(g) + e / 2 * 8) + ((Layout::column_step(g) + e % 2) << 8);
      if (unsigned(place) < unsigned(room)) queue[place] = {first + step, sum[4 * g + e]};
      ++place;
    }
    keep_order();
  }
}

// Whose list a hit is for, and the reference. Symmetric, slots are positions: a column is a query, too, and a row its
// reference.
struct Pair {
  int query, reference;
};

__device__ inline Pair pair_of(const TileAt& at, unsigned where) {
  const int slot = at.slot(where & 255), position = at.position(where >> 8 & 255);
  return where & kToColumn ? Pair{position, slot} : Pair{slot, position};
}

// By `threads` threads, of which this is number `thread`: queue[0..n) to the lists. kTogether: atomics that a thread has
// under way.
template <int kTogether>
__device__ __forceinline__ void drain(const Arguments& a, const TileAt& at, const Hit* queue, int n, int thread, int threads) {
  for (int first = thread; first < n; first += kTogether * threads) {
    unsigned place[kTogether];
    float norm[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      place[i] = a.plan.cap;
      if (first + i * threads >= n) continue;
      const Pair pair = pair_of(at, queue[first + i * threads].where);
      if (pair.query >= at.panel_rows) continue;
      place[i] = atomicAdd(global(a.s.count) + pair.query, 1u), norm[i] = global(a.s.y_packed)[pair.reference].norm;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (place[i] >= unsigned(a.plan.cap)) continue;
      const Hit hit = queue[first + i * threads];
      const Pair pair = pair_of(at, hit.where);
      const int key = sortable(minus_twice(norm[i], hit.product));
      global(a.s.list)[int64_t(pair.query) * a.plan.cap + place[i]] = {key, pair.reference};
    }
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
  const int width = schedule.width(at), index = int(ticket - at.first), runs = schedule.runs(at);
  const int first = at.met + (index % runs * a.plan.run + number) * width;
  TileAt tile;
  tile.panel_rows = schedule.bottom(at.panel) - schedule.top(at.panel), tile.first_step = at.step == 0;
  for (int h = 0; h < 2; ++h) tile.m[h] = meeting(a, at, index / runs, h < width ? first + h : at.meets);
  return tile;
}

}  // namespace ldreg::cuda
