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

__device__ __forceinline__ LidTerms<double> team_lid(int scratch_at, Estimator e, int k, int list_at) {
  const Neighbour* list = shared_at<Neighbour>(list_at);
  const double d_k = sqrt(list[k - 1].d2);
  LidSums<double> sums{0, 0};
  if (d_k > 0 && d_k < INFINITY) {
    for (int j = this_team().thread; j < lid_summed(e, k); j += this_team().threads) {
      const LidSums<double> share = lid_share(e, sqrt(list[j].d2), d_k);
      sums.one += share.one, sums.two += share.two;
    }
  }
  team_sum(this_team(), shared_at<double>(scratch_at), sums.one, sums.two);
  return lid_terms(e, k, d_k, second_rank(e, k) > 0 ? sqrt(list[second_rank(e, k) - 1].d2) : 0.0, sums);
}

template <class Real>
__device__ __forceinline__ void write_neighbours(TeamShared<Real> shared, int list_at) {
  const Neighbour* list = shared_at<Neighbour>(list_at);
  const Arguments& a = arguments();
  for (int j = this_team().thread; j < a.r.k; j += this_team().threads) {
    const double d2 = list[j].d2;
    const int64_t at = int64_t(shared.task().query) * a.r.k + j;
    static_cast<Real*>(a.o.distances)[at] = d2 < INFINITY ? Real(sqrt(d2) / shared.task().unit) : Real(NAN);
    a.o.indices[at] = list[j].index >> 1;
  }
}

// In place of the distances in list[0..n): what the sum has not got of a candidate, c_j less its share; c_j = w_j / d_j
// relative to the largest w_j. Beside a tiny d_j, all of them then fit float32, and so does what each of them adds, at most
// 1: relative to the largest c_j, those of the farther neighbours would vanish. Returns the largest w_j.
template <class Real>
__device__ __forceinline__ double weigh(int scratch_at, const LidTerms<double>& terms, int k, int power, int list_at,
                                        int n) {
  Neighbour* list = shared_at<Neighbour>(list_at);
  const Team team = this_team();
  double largest = 0;
  for (int j = team.thread; j < k; j += this_team().threads)
    largest = fmax(largest, fabs(lid_weight(terms, k, j, sqrt(list[j].d2))));
  largest = team_max(team, shared_at<double>(scratch_at), largest);
  if (largest == 0) largest = 1;
  constexpr double kMost = sizeof(Real) == 4 ? 1e38 : 1e300;  // of a weight, where the differences are subnormal
  for (int j = team.thread; j < n; j += this_team().threads) {
    const double d = sqrt(list[j].d2);
    double weight = j < k ? lid_weight(terms, k, j, d) : 0.0;
    if (list[j].index & 1) weight -= power == 2 ? terms.near / d : terms.near;
    list[j].d2 = weight == 0 ? 0 : fmax(-kMost, fmin(kMost, weight / largest / d));
  }
  team.sync();
  return largest;
}

// grad[query, :] = factor (of_sum sum + sum_j weight_j (x - y_j)), the weights standing in list[0..n).
template <class T>
__device__ __forceinline__ void gather(TeamShared<RealOf<T>> shared, int x_at, int list_at, int n, double of_sum,
                                    double factor) {
  using Real = RealOf<T>;
  const Real* x = shared_at<Real>(x_at);
  const Neighbour* list = shared_at<Neighbour>(list_at);
  constexpr int kColumns = 8;  // of a thread, four by four
  const Arguments& a = arguments();
  const int c = 4 * this_team().thread, stride = 4 * this_team().threads, columns = kColumns * this_team().threads;
  const Real unit = Real(shared.task().unit);
  Real* grad = static_cast<Real*>(a.o.grad) + int64_t(shared.task().query) * a.p.D;
  for (int from = 0; from < a.p.D; from += columns) {
    Real g[kColumns] = {};
    for (int base = 0; base < n; base += kWarp) {
      const int l = base + lane_id();
      for (unsigned left = __ballot_sync(kAllLanes, l < n && Real(list[l].d2) != 0); left != 0; left &= left - 1) {
        const int j = base + __ffs(int(left)) - 1;
        const Real weight = Real(list[j].d2);
        const T* row = static_cast<const T*>(a.p.y) + (list[j].index >> 1) * a.p.y_stride;
        Real v[kColumns];
        load_groups<T, kColumns>(row, from + c, stride, a.p.D, a.p.aligned, v);
        subtract(x, from + c, stride, unit, shared.task().columns, v);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) g[i] += weight * v[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = from + c + i / 4 * stride + i % 4;
      if (column >= a.p.D) continue;
      if (shared.task().power > 0) g[i] += Real(shared.sum()[column]) * Real(of_sum);
      grad[column] = Real(double(g[i]) * factor);
    }
  }
}

// The gradient; 0 for degenerate rows, NaN for rows that NaN or Inf touches. The list loses its distances.
template <class T>
__device__ inline void write_gradient(const TeamShared<RealOf<T>>& shared, int x_at, int list_at, int n,
                                      const LidTerms<double>& terms) {
  const Arguments& a = arguments();
  if (!(terms.lid > 0)) {
    RealOf<T>* grad = static_cast<RealOf<T>*>(a.o.grad) + int64_t(shared.task().query) * a.p.D;
    for (int c = this_team().thread; c < a.p.D; c += this_team().threads)
      grad[c] = terms.degenerate ? RealOf<T>(0) : RealOf<T>(NAN);
    return;
  }
  const double near = terms.near;
  const double largest = weigh<RealOf<T>>(shared.scratch_at(), terms, a.r.k, shared.task().power, list_at, n);
  gather<T>(shared, x_at, list_at, n, near / largest, largest * shared.task().unit);
}

// All outputs of the task's query from its list[0..n), sorted, n >= a.p.wanted, and its row x.
template <class T>
__device__ __forceinline__ void write_query(TeamShared<RealOf<T>> shared, int x_at, int list_at) {
  using Real = RealOf<T>;
  const Arguments& a = arguments();
  list_at += a.p.drop * int(sizeof(Neighbour));
  if (a.r.knn) return write_neighbours<Real>(shared, list_at);
  for (int t = 0; t < a.r.tracks; ++t) {
    const auto tracked = team_lid(shared.scratch_at(), Estimator(a.r.track_estimator[t]), a.r.track_k[t], list_at);
    if (this_team().thread == 0) static_cast<Real*>(a.o.tracked)[int64_t(t) * a.p.B + shared.task().query] = Real(tracked.lid);
  }
  const LidTerms<double> terms = team_lid(shared.scratch_at(), Estimator(a.r.estimator), a.r.k, list_at);
  if (this_team().thread == 0) {
    static_cast<Real*>(a.o.lid)[shared.task().query] = Real(terms.lid);
    a.o.degenerate[shared.task().query] = terms.degenerate;
  }
  if (a.r.gradient) write_gradient<T>(shared, x_at, list_at, shared.task().n - a.p.drop, terms);
}

}  // namespace ldreg::cuda
