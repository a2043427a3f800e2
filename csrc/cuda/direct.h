// The direct stage: every pair's exact distance. For small problems, k near N, double, and rows whose lists had no room.
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

template <class T>
__device__ inline void nearest_of_all(const Arguments& a, const Team& team, TeamShared<RealOf<T>>& shared, int queries,
                                      const int* own, double unit64) {
  using Real = RealOf<T>;
  const Real unit = Real(unit64);
  const int room = a.plan.room, round = room - a.p.wanted, columns = TeamShared<Real>::columns(a.p.D);
  const T* y = static_cast<const T*>(a.p.y);
  for (int first = 0; first < a.p.N; first += round) {
    const int last = smaller(first + round, a.p.N);
    for (int j = first + team.warp; j < last; j += kTeam / kWarp) {
      double d2[kMostTogether] = {};
      for (int from = 4 * team.lane; from < a.p.D; from += kWarp * kDirectValues) {
        Real v[kDirectValues];
        load_groups<T, kDirectValues>(y + j * a.p.y_stride, from, 4 * kWarp, a.p.D, a.p.aligned, v);
#pragma unroll
        for (int q = 0; q < kMostTogether; ++q) {
          if (q >= queries) break;
          Real difference[kDirectValues];
#pragma unroll
          for (int i = 0; i < kDirectValues; ++i) difference[i] = v[i];
          subtract(shared.x + q * columns, from, 4 * kWarp, unit, columns, difference);
          d2[q] += sum_of_squares(difference);
        }
      }
#pragma unroll
      for (int q = 0; q < kMostTogether; ++q) {
        if (q >= queries) break;
        const Neighbour item{finite_or_inf(warp_sum(d2[q])), j};
        Neighbour* list = shared.list + q * room;
        // The threshold is the last of a list that was cut; the fourth number after the counts says whether it was.
        if (team.lane != 0 || j == own[q]) continue;
        if (shared.count[kMostTogether + q] && !before(item, list[a.p.wanted - 1])) continue;
        list[atomicAdd(shared.count + q, 1)] = item;
      }
    }
    team.sync();
    for (int q = 0; q < queries; ++q) {
      const int n = shared.count[q];
      if (n <= a.p.wanted) continue;
      sort(team, shared.list + q * room, n);
      if (team.thread == 0) shared.count[q] = a.p.wanted, shared.count[kMostTogether + q] = 1;
    }
    team.sync();
  }
}

template <class T>
__device__ __noinline__ void direct_job(const Arguments& a, int job, int rows, char* memory) {
  using Real = RealOf<T>;
  const Team team = this_team();
  if (team.id >= a.plan.teams) return;
  const int first = (job * a.plan.teams + team.id) * a.plan.together, queries = smaller(a.plan.together, rows - first);
  if (queries <= 0) return;
  const int room = a.plan.room, columns = TeamShared<Real>::columns(a.p.D);
  const unsigned long long largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
  const double unit = unit_of(largest, Real());
  TeamShared<Real> shared(memory + team.id * TeamShared<Real>::bytes(a.plan.together, room, a.p.D, false),
                          a.plan.together, room, a.p.D);
  int query[kMostTogether], own[kMostTogether];
#pragma unroll
  for (int q = 0; q < kMostTogether; ++q) {
    query[q] = q < queries ? (a.plan.tiles ? a.s.failed[first + q] : first + q) : 0;
    own[q] = own_row(a.p, query[q]);
    if (q < queries) load_query<T>(a, team, query[q], Real(unit), shared.x + q * columns);
  }
  if (team.thread < 2 * kMostTogether) shared.count[team.thread] = 0;
  team.sync();
  nearest_of_all<T>(a, team, shared, queries, own, unit);
  TeamShared<Real> one = shared;
#pragma unroll
  for (int q = 0; q < kMostTogether; ++q) {
    if (q >= queries) break;
    one.x = shared.x + q * columns;
    Neighbour* list = shared.list + q * room;
    const int n = shared.count[q];
    sort(team, list, n);
    for (int i = team.thread; i < n; i += kTeam) list[i].index *= 2;
    team.sync();
    write_query<T>(a, team, one, list, n, query[q], unit, 0);
    team.sync();
  }
}

}  // namespace ldreg::cuda
