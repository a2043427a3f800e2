// From a sorted list of neighbours to what the call asked for: neighbours, LIDs, the gradient of ln LID.
//
// Contract: formulas are lid_math.h's. Distances are in double and in the list's unit, which no estimator can tell: at
// LID 1000 a float32 difference d_k - d_j has three digits left. By one team, for one query; tags are 2 j + (in the sum).
//   d ln LID / d x = sum_j c_j (x - y_j),   c_j = w_j / d_j,   w_j = d ln LID / d d_j (lid_weight)
// For mom and mom_amsaleg c_j is one number over d_j for all j < k, for hill over d_j^2: their sum comes from the pass that
// took the distances (exact.h), and what is left to gather is the k-th neighbour and the wrong guesses.
#pragma once

#include "exact.h"

namespace ldreg::cuda {

// p if c_j of the nearer neighbours is one number over d_j^p; 0 if it is not.
LDREG_HD int near_power(Estimator e) {
  switch (e) {
    case Estimator::mom:
    case Estimator::mom_amsaleg: return 1;
    case Estimator::hill:
    case Estimator::hill_unbiased: return 2;
    default: return 0;
  }
}

static __device__ __noinline__ LidTerms<double> team_lid(const Team& team, double* scratch, Estimator e, int k, const Neighbour* list) {
  const double d_k = sqrt(list[k - 1].d2);
  LidSums<double> sums{0, 0};
  if (d_k > 0 && d_k < INFINITY) {
    for (int j = team.thread; j < lid_summed(e, k); j += kTeam) {
      const LidSums<double> share = lid_share(e, sqrt(list[j].d2), d_k);
      sums.one += share.one, sums.two += share.two;
    }
  }
  team_sum(team, scratch, sums.one, sums.two);
  return lid_terms(e, k, d_k, second_rank(e, k) > 0 ? sqrt(list[second_rank(e, k) - 1].d2) : 0.0, sums);
}

template <class Real>
__device__ inline void write_neighbours(const Arguments& a, const Team& team, const Neighbour* list, int query, double unit) {
  const int k = a.r.k;
  for (int j = team.thread; j < k; j += kTeam) {
    const double d2 = list[j].d2;
    const int64_t at = int64_t(query) * k + j;
    static_cast<Real*>(a.o.distances)[at] = d2 < INFINITY ? Real(sqrt(d2) / unit) : Real(NAN);
    a.o.indices[at] = list[j].index >> 1;
  }
}

// grad[query, :]; 0 for degenerate rows, NaN for rows that NaN or Inf touches. list[0..n) loses its distances.
template <class T>
__device__ __noinline__ void write_gradient(const Arguments& a, const Team& team, TeamShared<RealOf<T>>& shared, Neighbour* list,
                                      int n, int query, double unit, const LidTerms<double>& terms, int power) {
  using Real = RealOf<T>;
  constexpr int kColumns = 16;  // of a thread, four by four
  Real* grad = static_cast<Real*>(a.o.grad) + int64_t(query) * a.p.D;
  if (!(terms.lid > 0)) {
    for (int c = team.thread; c < a.p.D; c += kTeam) grad[c] = terms.degenerate ? Real(0) : Real(NAN);
    return;
  }
  const int k = a.r.k;
  double largest = 0;
  for (int j = team.thread; j < k; j += kTeam) {
    const double d = sqrt(list[j].d2);
    if (d > 0) largest = fmax(largest, fabs(lid_weight(terms, k, j, d)) / d);
  }
  largest = team_max(team, shared.scratch, largest);
  if (largest == 0) largest = 1;
  // In place of its distance, what the sum has not got of a candidate; relative to the largest, so that float32 can hold it.
  for (int j = team.thread; j < n; j += kTeam) {
    const double d = sqrt(list[j].d2);
    double weight = j < k && d > 0 ? lid_weight(terms, k, j, d) / d : 0.0;
    if (list[j].index & 1) weight -= power == 2 ? terms.near / d / d : terms.near / d;
    list[j].d2 = weight / largest;
  }
  team.sync();
  const Real of_sum = Real(terms.near / largest);
  const double factor = largest * unit;
  const T* y = static_cast<const T*>(a.p.y);
  for (int from = 0; from < a.p.D; from += kTeam * kColumns) {
    Real g[kColumns] = {};
    if (power > 0) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int c = from + 4 * team.thread + i / 4 * 4 * kTeam + i % 4;
        if (c < a.p.D) g[i] = Real(shared.sum[c]) * of_sum;
      }
    }
    for (int j = 0; j < n; ++j) {
      const Real weight = Real(list[j].d2);
      if (weight == 0) continue;
      const T* row = y + (list[j].index >> 1) * a.p.y_stride;
#pragma unroll
      for (int i = 0; i < kColumns; i += 4) {
        const int c = from + 4 * team.thread + i * kTeam;
        if (c >= a.p.D) continue;
        Real v[4];
        load4(row, c, a.p.D, a.p.aligned, v);
#pragma unroll
        for (int m = 0; m < 4; ++m) g[i + m] += weight * (shared.x[c + m] - v[m] * Real(unit));
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int c = from + 4 * team.thread + i / 4 * 4 * kTeam + i % 4;
      if (c < a.p.D) grad[c] = Real(double(g[i]) * factor);
    }
  }
}

// All outputs of a query from its list[0..n), sorted, n >= a.p.wanted, x in shared memory.
template <class T>
__device__ inline void write_query(const Arguments& a, const Team& team, TeamShared<RealOf<T>>& shared, Neighbour* list,
                                   int n, int query, double unit, int power) {
  using Real = RealOf<T>;
  list += a.p.drop, n -= a.p.drop;
  if (a.r.knn) return write_neighbours<Real>(a, team, list, query, unit);
  for (int t = 0; t < a.r.tracks; ++t) {
    const auto tracked = team_lid(team, shared.scratch, Estimator(a.r.track_estimator[t]), a.r.track_k[t], list);
    if (team.thread == 0) static_cast<Real*>(a.o.tracked)[int64_t(t) * a.p.B + query] = Real(tracked.lid);
  }
  const LidTerms<double> terms = team_lid(team, shared.scratch, Estimator(a.r.estimator), a.r.k, list);
  if (team.thread == 0) {
    static_cast<Real*>(a.o.lid)[query] = Real(terms.lid);
    a.o.degenerate[query] = terms.degenerate;
  }
  if (a.r.gradient) write_gradient<T>(a, team, shared, list, n, query, unit, terms, power);
}

}  // namespace ldreg::cuda
