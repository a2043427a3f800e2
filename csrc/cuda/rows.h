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

// The list of `slot`, sorted by distance, and what its query needs, to the team's shared memory.
template <class T, int kTogether>
__device__ inline void load_list(const TeamShared<RealOf<T>>& shared, int slot) {
  const Arguments& a = arguments();
  const int n = shared.task().n;
  const Candidate* list = a.s.list + int64_t(slot) * a.plan.cap;
  for (int c = this_team().thread; c < n; c += kTeam) {
    const Candidate item = list[c];
    shared.list()[c] = {double(item.key), reference_at(a, item.position)};
  }
  load_query<T>(a, shared.task().query, RealOf<T>(shared.task().unit), shared.x());
  for (int c = this_team().thread; a.plan.sums && c < shared.task().columns; c += kTeam) shared.sum()[c] = 0;
  this_team().sync();
  if (shared.task().power > 0) sort(shared.list_at(), n);
  if (a.p.D <= kWidest<4>) evaluate<T, 4, kTogether == 1 ? 1 : 2 * kTogether>(shared, a.r.k);
  else evaluate<T, kTogether == 1 ? 8 : 16, kTogether>(shared, a.r.k);
  this_team().sync();
  sort(shared.list_at(), shared.task().n);
}

template <class T, int kTogether>
__device__ __forceinline__ void rows_job(const Cursor& at, unsigned ticket) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  const Schedule schedule(a);
  const int panel_rows = schedule.bottom(at.panel) - schedule.top(at.panel);
  const int first = int(ticket - at.first) * schedule.rows_of_job();
  const int last = smaller(first + schedule.rows_of_job(), panel_rows);
  if (thread_id() == 0) {
    for (int b = first / kBlock; b <= (last - 1) / kBlock; ++b)
      wait_for(a.s.ready + schedule.block_of(at.panel, b), schedule.all_compactions(at.panel, b));
  }
  __syncthreads();
  if (this_team().id >= a.plan.teams) return;

  const TeamShared<Real> shared{kControlBytes + this_team().id * TeamShared<Real>::bytes(1, a.plan.room, a.p.D, a.plan.sums)};
  for (int slot = first + this_team().id; slot < last; slot += a.plan.teams) {
    if (a.s.count[slot] > unsigned(a.plan.cap)) continue;
    if (this_team().thread == 0) {
      const auto largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
      shared.task() = {unit_of(largest, Real()), 1, a.plan.room, TeamShared<Real>::padded(a.p.D),
                       query_of(a, at.panel, slot), int(a.s.count[slot]), a.plan.sums ? near_power(Estimator(a.r.estimator)) : 0};
    }
    this_team().sync();
    load_list<T, kTogether>(shared, slot);
    write_query<T>(shared, shared.x_at(), shared.list_at());
    this_team().sync();
  }
}

}  // namespace ldreg::cuda
