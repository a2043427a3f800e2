// The rows stage: candidates of the tiles to results, a team of warps for each query.
//
// Contract: a list (threshold.h) holds every neighbour of its query and a few more. Their exact distances are taken from the
// references' own rows, each read once; those nearest by key, nearly always the neighbours, are added to the gradient on
// the way. Lists were appended to in any order, so they are sorted by (key, index) first where sums depend on it. Rows whose
// list had no room are left to dense.h.
#pragma once

#include "estimate.h"
#include "operands.h"

namespace ldreg::cuda {

// The list of `slot`, sorted by distance, and what its query needs, to the team's shared memory.
template <class T, bool kBulk>
__device__ inline void load_list(const TeamShared<RealOf<T>>& shared, int slot) {
  const Arguments& a = arguments();
  const int n = shared.task().n;
  const Candidate* list = a.s.list + int64_t(slot) * a.plan.cap;
  for (int c = this_team().thread; c < n; c += this_team().threads) {
    const Candidate item = list[c];
    shared.list()[c] = {double(item.key), reference_at(a, item.position)};
  }
  load_query<T>(a, shared.task().query, RealOf<T>(shared.task().unit), shared.x());
  this_team().sync();
  if (shared.task().power > 0) sort(shared.list_at(), n);
  if (row_values(a.p.D) == 8) evaluate<T, kBulk, 8>(shared);
  else evaluate<T, kBulk, 16>(shared);
  sort(shared.list_at(), shared.task().n);
}

// The team's task: the query whose list is at `slot`.
template <class Real>
__device__ __forceinline__ void set_task(const TeamShared<Real>& shared, int panel, int slot) {
  const Arguments& a = arguments();
  const auto largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
  shared.task() = {unit_of(largest, Real()), 1, a.plan.room, TeamShared<Real>::padded(a.p.D), query_of(a, panel, slot),
                   int(a.s.count[slot]), a.plan.sums ? near_power(Estimator(a.r.estimator)) : 0};
}

// `at` and `ticket` are in shared memory.
template <class T, bool kBulk>
__device__ __forceinline__ void rows_job(const Cursor& at, const unsigned& ticket) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  const Schedule schedule(a);
  const auto first = [&] { return int(ticket - at.first) * schedule.rows_of_job(); };
  const auto last = [&] {
    return smaller(first() + schedule.rows_of_job(), schedule.bottom(at.panel) - schedule.top(at.panel));
  };
  if (thread_id() == 0) {
    for (int b = first() / kBlock; b <= (last() - 1) / kBlock; ++b)
      wait_for(a.s.ready + schedule.block_of(at.panel, b), schedule.all_compactions(at.panel, b));
  }
  __syncthreads();
  if (this_team().id >= a.plan.teams) return;

  const int ring_bytes = a.plan.turns * rows_together(a.p.D) * a.plan.row_bytes;
  const TeamShared<Real> shared{kControlBytes + this_team().id * (a.plan.ring_at + ring_bytes)};
  const Ring<T, kBulk, 16> ring(shared);
  ring.open();
#pragma unroll 1
  for (int round = 0; round < a.plan.query_share; ++round) {
    const int slot = first() + round * a.plan.teams + this_team().id;
    if (slot >= last()) break;
    if (a.s.count[slot] > unsigned(a.plan.cap)) continue;
    if (this_team().thread == 0) set_task(shared, at.panel, slot);
    this_team().sync();
    load_list<T, kBulk>(shared, slot);
    write_query<T>(shared, shared.x_at(), shared.list_at());
    this_team().sync();
  }
  ring.close();
}

}  // namespace ldreg::cuda
