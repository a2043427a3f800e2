// The direct stage: every pair's exact distance, for problems too small for the tiles of dense.h.
//
// Contract: a team takes up to kMostTogether queries, so that a reference is read once for all of them, and keeps each
// one's nearest so far in shared memory: append what is before the threshold, then sort and cut. A warp takes a reference;
// distances are as exact.h defines them (the last bit may differ: sums are in another order).
#pragma once

#include "estimate.h"
#include "operands.h"

namespace ldreg::cuda {

constexpr int kMostTogether = 4;
constexpr int kLeastRound = 128;  // references between two looks at the lists
constexpr int kDirectValues = 16;
enum DirectWord : int { kCount = 0, kCut = kMostTogether, kOwn = 2 * kMostTogether };  // per query, in TeamShared::words

// Distances of reference j, by a warp, to the team's queries; appended to their lists where they come before the threshold,
// the last of a list that was cut.
template <class T>
__device__ __forceinline__ void offer(const TeamShared<RealOf<T>>& shared, int queries, int j) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  const T* row = static_cast<const T*>(a.p.y) + j * a.p.y_stride;
  const Real unit = Real(shared.task().unit);
  double d2[kMostTogether] = {};
  for (int from = 4 * lane_id(); from < a.p.D; from += kWarp * kDirectValues) {
    Real v[kDirectValues];
    load_groups<T, kDirectValues>(row, from, 4 * kWarp, a.p.D, a.p.aligned, v);
#pragma unroll
    for (int q = 0; q < kMostTogether; ++q) {
      if (q >= queries) break;
      Real difference[kDirectValues];
#pragma unroll
      for (int i = 0; i < kDirectValues; ++i) difference[i] = v[i];
      subtract(shared.x(q), from, 4 * kWarp, unit, shared.task().columns, difference);
      d2[q] += sum_of_squares(difference);
    }
  }
#pragma unroll
  for (int q = 0; q < kMostTogether; ++q) {
    if (q >= queries) break;
    const Neighbour item{finite_or_inf(warp_sum(d2[q])), j};
    int* words = shared.words();
    Neighbour* list = shared.list(q);
    if (lane_id() != 0 || j == words[kOwn + q]) continue;
    if (words[kCut + q] && !before(item, list[a.p.wanted - 1])) continue;
    list[atomicAdd(words + kCount + q, 1)] = item;
  }
}

template <class T>
__device__ __forceinline__ void nearest_of_all(TeamShared<RealOf<T>> shared, int queries) {
  const Arguments& a = arguments();
  const int round = a.plan.room - a.p.wanted;
  for (int first = 0; first < a.p.N; first += round) {
    for (int j = first + this_team().warp; j < smaller(first + round, a.p.N); j += this_team().warps())
      offer<T>(shared, queries, j);
    this_team().sync();
    for (int q = 0; q < queries; ++q) {
      int* words = shared.words();
      if (words[kCount + q] <= a.p.wanted) continue;
      sort(shared.list_at(q), words[kCount + q]);
      if (this_team().thread == 0) words[kCount + q] = a.p.wanted, words[kCut + q] = 1;
    }
    this_team().sync();
  }
}

// All outputs of the q-th of the team's queries, from its list in any order.
template <class T>
__device__ __forceinline__ void write_nearest(const TeamShared<RealOf<T>>& shared, int q, int query) {
  const int n = shared.words()[kCount + q];
  sort(shared.list_at(q), n);
  for (int i = this_team().thread; i < n; i += this_team().threads) shared.list(q)[i].index *= 2;
  if (this_team().thread == 0) shared.task().query = query, shared.task().n = n;
  this_team().sync();
  write_query<T>(shared, shared.x_at(q), shared.list_at(q));
  this_team().sync();
}

template <class T>
__device__ __forceinline__ void direct_job(int job, int rows) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  if (this_team().id >= a.plan.teams) return;
  const int first = (job * a.plan.teams + this_team().id) * a.plan.together;
  const int queries = smaller(a.plan.together, rows - first);
  if (queries <= 0) return;
  const auto query = [&](int q) { return first + q; };
  const int bytes = TeamShared<Real>::bytes(a.plan.together, a.plan.room, a.p.D, false);
  const TeamShared<Real> shared{kControlBytes + this_team().id * bytes};
  if (this_team().thread < queries) {
    const int q = this_team().thread;
    int* words = shared.words();
    words[kOwn + q] = own_row(a.p, query(q)), words[kCount + q] = words[kCut + q] = 0;
  }
  if (this_team().thread == 0) {
    const auto largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
    shared.task() = {unit_of(largest, Real()), a.plan.together, a.plan.room, TeamShared<Real>::padded(a.p.D), 0, 0, 0};
  }
  this_team().sync();
  for (int q = 0; q < queries; ++q) load_query<T>(a, query(q), Real(shared.task().unit), shared.x(q));
  this_team().sync();
  nearest_of_all<T>(shared, queries);
  for (int q = 0; q < queries; ++q) write_nearest<T>(shared, q, query(q));
}

}  // namespace ldreg::cuda
