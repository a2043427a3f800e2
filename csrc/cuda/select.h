// The dense way's second half: from the distances of a round (dense.h) to the nearest, and to what the call asked for.
//
// Contract: a team takes a query. It bounds the wanted-th smallest distance by counting in bins of equal ranges of bits, keeps
// what is not beyond the bound, and sorts and cuts that as direct.h does; so ties, and bins with more in them than a list has
// room for, cost time only. Where a panel takes several rounds, the nearest so far are kept in global memory between them.
#pragma once

#include "dense.h"

namespace ldreg::cuda {

constexpr int kBins = 128;
enum SelectWord : int { kBin = 3 * kMostTogether, kBelow, kThrough };  // in TeamShared::words, behind direct.h's

// Squared distances of a query to the references [first, first + n).
struct PairRow {
  const double* d2;
  int first, n, own;
  __device__ bool skips(int i) const { return first + i == own; }
  __device__ double operator[](int i) const { return finite_or_inf(fabs(*global(d2 + i))); }

  // use(index, distance) for all of [from, end) but the query itself, by a team. A few loads are under way at a time.
  template <class Use>
  __device__ __forceinline__ void each(int from, int end, Use&& use) const {
    constexpr int kAhead = 8;
    const int threads = this_team().threads;
    for (int i = from + this_team().thread; i < end; i += kAhead * threads) {
      double some[kAhead];
#pragma unroll
      for (int m = 0; m < kAhead; ++m) some[m] = (*this)[smaller(i + m * threads, n - 1)];
#pragma unroll
      for (int m = 0; m < kAhead; ++m)
        if (i + m * threads < end && !skips(i + m * threads)) use(i + m * threads, some[m]);
    }
  }
};

// How many of the row are in each bin: bits low + (bin << shift) and up. The first bin up to which there are `wanted`, with
// those below the bins, goes to words()[kBin] (-1 if there is none), how many precede it and how many are through with it to
// the next two.
template <class Real>
__device__ __forceinline__ void count_bins(const TeamShared<Real>& shared, const PairRow& row, unsigned long long low,
                                           unsigned long long high, int shift, int below, int wanted) {
  int* bins = reinterpret_cast<int*>(shared.list());
  for (int b = this_team().thread; b < kBins; b += this_team().threads) bins[b] = 0;
  this_team().sync();
  row.each(0, row.n, [&](int, double d2) {
    const unsigned long long bits = bits_of(d2);
    if (bits >= low && bits <= high) atomicAdd(bins + ((bits - low) >> shift), 1);
  });
  this_team().sync();
  if (this_team().warp == 0) {
    int* words = shared.words();
    if (lane_id() == 0) words[kBin] = -1;
    __syncwarp();
    constexpr int kEach = kBins / kWarp;
    int mine = 0;
    for (int b = 0; b < kEach; ++b) mine += bins[lane_id() * kEach + b];
    int through = mine;
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const int other = __shfl_up_sync(kAllLanes, through, lanes);
      if (lane_id() >= lanes) through += other;
    }
    int before = below + through - mine;
    for (int b = 0; b < kEach; ++b) {
      const int next = before + bins[lane_id() * kEach + b];
      if (before < wanted && next >= wanted) words[kBin] = lane_id() * kEach + b, words[kBelow] = before, words[kThrough] = next;
      before = next;
    }
  }
  this_team().sync();
}

// Bits that at least `wanted` of the row do not exceed; those who do not are at most `room`, unless bits of one value are more.
// All bits if fewer than `wanted` are finite. `passing`: how many do not exceed them.
template <class Real>
__device__ __forceinline__ unsigned long long split_row(const TeamShared<Real>& shared, const PairRow& row, int wanted, int room,
                                                        int& passing) {
  double least = INFINITY, most = -1;
  row.each(0, row.n, [&](int, double d2) {
    if (d2 < INFINITY) least = fmin(least, d2), most = fmax(most, d2);
  });
  least = -team_max(this_team(), shared.scratch(), -least), most = team_max(this_team(), shared.scratch(), most);
  passing = row.n;
  if (most < 0) return ~0ull;
  unsigned long long low = bits_of(least), high = bits_of(most);
  for (int below = 0;;) {
    int shift = 0;
    while ((high - low) >> shift >= kBins) ++shift;
    count_bins(shared, row, low, high, shift, below, wanted);
    const int* words = shared.words();
    const int bin = words[kBin];
    below = words[kBelow], passing = words[kThrough];
    this_team().sync();
    if (bin < 0) return passing = row.n, ~0ull;
    low += (unsigned long long)bin << shift;
    const unsigned long long end = low + ((1ull << shift) - 1);
    high = end < high ? end : high;
    if (passing <= room || shift == 0) return high;
  }
}

// What of the row is not beyond `limit` joins the team's list. Where there is no room for all of it, the list is cut to the
// nearest on the way.
template <class Real>
__device__ __forceinline__ void gather_nearest(const TeamShared<Real>& shared, const PairRow& row, unsigned long long limit,
                                               int passing, int wanted, int room) {
  int* words = shared.words();
  const int round = words[kCount] + passing <= room ? row.n : room - wanted;
  this_team().sync();  // the count is the same for all
  for (int first = 0; first < row.n; first += round) {
    Neighbour* list = shared.list();
    row.each(first, smaller(first + round, row.n), [&](int i, double d2) {
      const Neighbour item{d2, row.first + i};
      if (bits_of(d2) > limit || (words[kCut] && !before(item, list[wanted - 1]))) return;
      list[atomicAdd(words + kCount, 1)] = item;
    });
    this_team().sync();
    if (first + round < row.n && words[kCount] > wanted) {
      sort(shared.list_at(), words[kCount]);
      if (this_team().thread == 0) words[kCount] = wanted, words[kCut] = 1;
    }
    this_team().sync();
  }
}

// The nearest of the rounds before, in order, to the team's list.
template <class Real>
__device__ __forceinline__ void recall(const TeamShared<Real>& shared, int slot) {
  const Arguments& a = arguments();
  const int n = a.s.found[slot];
  for (int i = this_team().thread; i < n; i += this_team().threads)
    shared.list()[i] = a.s.nearest[int64_t(slot) * a.p.wanted + i];
  if (this_team().thread == 0) shared.words()[kCount] = n, shared.words()[kCut] = n == a.p.wanted;
  this_team().sync();
}

// The nearest so far, in order, for the rounds to come.
template <class Real>
__device__ __forceinline__ void keep(const TeamShared<Real>& shared, int slot) {
  const Arguments& a = arguments();
  sort(shared.list_at(), shared.words()[kCount]);
  const int n = smaller(shared.words()[kCount], a.p.wanted);
  for (int i = this_team().thread; i < n; i += this_team().threads)
    a.s.nearest[int64_t(slot) * a.p.wanted + i] = shared.list()[i];
  if (this_team().thread == 0) a.s.found[slot] = n;
}

// What a job of the round has to wait for, by one thread.
__device__ inline void await_round(const Rounds& rounds, const RoundAt& at) {
  const unsigned* s = arguments().s.state;
  const int parity = at.round % 2;
  if (!at.select) return wait_for(s + kSelected + parity, at.selected[parity]);
  wait_for(s + kDense + parity, at.tiled[parity]);
  if (rounds.stretches() > 1) wait_for(s + kSelected + 1 - parity, at.selected[1 - parity]);
}

// The job-th selection of a round, of a query for each team. By the whole block.
template <class T>
__device__ __forceinline__ void select_job(const Rounds& rounds, const RoundAt& at, int job) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  const int slot = job * a.plan.teams + this_team().id, number = rounds.top(at.round) + slot;
  if (this_team().id >= a.plan.teams || number >= rounds.bottom(at.round)) return;
  const int query = a.plan.tiles ? a.s.failed[number] : number;
  const TeamShared<Real> shared{kControlBytes + this_team().id * TeamShared<Real>::bytes(1, a.plan.room, a.p.D, false)};
  if (this_team().thread == 0) {
    const auto largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
    shared.task() = {unit_of(largest, Real()), 1, a.plan.room, TeamShared<Real>::padded(a.p.D), query, 0, 0};
    shared.words()[kCount] = shared.words()[kCut] = 0;
  }
  this_team().sync();
  const int first = rounds.first(at.round), last = rounds.last(at.round);
  const PairRow row{a.s.pairs + (at.round % 2 * a.plan.dense_rows + slot) * int64_t(a.plan.dense_references), first, last - first,
                    own_row(a.p, query)};
  if (first > 0) recall(shared, slot);
  unsigned long long limit = ~0ull;
  int passing = row.n;
  if (shared.words()[kCount] == 0) limit = split_row(shared, row, a.p.wanted, a.plan.room, passing);
  gather_nearest(shared, row, limit, passing, a.p.wanted, a.plan.room);
  if (last < a.p.N) return keep(shared, slot);
  load_query<T>(a, query, Real(shared.task().unit), shared.x());
  this_team().sync();
  write_nearest<T>(shared, 0, query);
}

}  // namespace ldreg::cuda
