// The rows stage: candidates of the tiles to results, a team of four warps for each query.
//
// Contract: a list (threshold.h) holds every neighbour of its query and a few more. Their exact distances are taken from the
// references' own rows, each read once; those nearest by key, nearly always the neighbours, are added to the gradient on
// the way. Lists were appended to in any order, so they are sorted by (key, index) first where sums depend on it. Rows whose
// list had no room are left to direct.h.
#pragma once

#include "estimate.h"
#include "operands.h"

namespace ldreg::cuda {

template <class T>
__device__ __noinline__ void rows_job(const Arguments& a, const Cursor& at, unsigned ticket, char* memory) {
  using Real = RealOf<T>;
  const Schedule schedule(a);
  const Team team = this_team();
  const int panel_rows = schedule.bottom(at.panel) - schedule.top(at.panel);
  const int first = int(ticket - at.first) * schedule.rows_of_job();
  const int last = smaller(first + schedule.rows_of_job(), panel_rows);
  if (threadIdx.x == 0) {
    for (int b = first / kBlock; b <= (last - 1) / kBlock; ++b)
      wait_for(a.s.ready + schedule.block_of(at.panel, b), schedule.compactions(at.panel, b, at.step + 1));
  }
  __syncthreads();
  if (team.id >= a.plan.teams) return;

  const bool sums = !a.r.knn && a.r.gradient && a.p.drop == 0 && a.p.D <= kWidest<16>;
  const int power = sums ? near_power(Estimator(a.r.estimator)) : 0;
  const unsigned long long largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
  const double unit = unit_of(largest, Real());
  TeamShared<Real> shared(memory + team.id * TeamShared<Real>::bytes(1, a.plan.room, a.p.D, true), 1, a.plan.room, a.p.D);
  for (int slot = first + team.id; slot < last; slot += a.plan.teams) {
    const int n = int(a.s.count[slot]), query = query_of(a, at.panel, slot);
    if (n > a.plan.cap) continue;
    const Candidate* list = a.s.list + int64_t(slot) * a.plan.cap;
    for (int c = team.thread; c < n; c += kTeam) {
      const Candidate item = list[c];
      shared.list[c] = {double(item.key), reference_at(a, item.position)};
    }
    load_query<T>(a, team, query, Real(unit), shared.x);
    team.sync();
    if (power > 0) sort(team, shared.list, n);
    if (a.p.D <= kWidest<4>) evaluate<T, 4, 8>(a, team, shared, n, unit, power, a.r.k);
    else evaluate<T, 16, 4>(a, team, shared, n, unit, power, a.r.k);
    team.sync();
    sort(team, shared.list, n);
    write_query<T>(a, team, shared, shared.list, n, query, unit, power);
    team.sync();
  }
}

}  // namespace ldreg::cuda
