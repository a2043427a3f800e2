// Exact distances of a query to listed references, by float32 differences; a reference that is in registers anyway can be
// added to the query's gradient, too.
//
// Contract: d2 = sum_c (u (x_c - y_c))^2 with u a power of two. Squares of at most four columns are added in float32,
// everything else in double, in one order; where those few would underflow, they are taken of larger differences. No
// matrix-product form, so no cancellation at any offset. Pairs that NaN or Inf touches get +inf. A team takes a few
// references at a time, each thread the same columns of all: the sums for the gradient are then each in one thread, and the
// only thing threads exchange is a distance.
#pragma once

#include "ring.h"

namespace ldreg::cuda {

// Differences of x and groups of a row of y (load_groups), x being 0 from column D up to `columns`.
template <class Real, int kValues>
__device__ __forceinline__ void subtract(const Real* x, int c, int stride, Real unit, int columns,
                                         Real (&difference)[kValues]) {
  c = opaque(c);
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    Four<Real> four = {};
    if (c + i / 4 * stride < columns) four = *reinterpret_cast<const Four<Real>*>(x + c + i / 4 * stride);
#pragma unroll
    for (int n = 0; n < 4; ++n) difference[i + n] = four.v[n] - difference[i + n] * unit;
  }
}

// Differences of x and the rows of a turn, whose columns this thread has from `x` on; `left` of them, unless kWhole says that
// they fill all groups, the others are 0. x is read once for all rows.
template <bool kWhole, class Real, class Turn, int kRows, int kValues>
__device__ __forceinline__ void subtract(const Real* x, const Turn& turn, int c, int stride, int left, Real unit,
                                         Real (&difference)[kRows][kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    Four<Real> own = {};
    typename Turn::Group other[kRows] = {};
    if (kWhole || i / 4 * stride < left) {
      own = *reinterpret_cast<const Four<Real>*>(x + i / 4 * stride);
#pragma unroll
      for (int t = 0; t < kRows; ++t)
        other[t] = *reinterpret_cast<const typename Turn::Group*>(turn.row(t) + c + i / 4 * stride);
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t)
#pragma unroll
      for (int n = 0; n < 4; ++n) difference[t][i + n] = own.v[n] - widen(other[t].v[n]) * unit;
    if (i % 8 == 4) keep_order();  // more loads under way would take the registers of the sums
  }
}

constexpr double kLift = 1.2676506002282294e30;  // 2^100

template <class Real, int kValues>
__device__ __forceinline__ double sum_of_squares(const Real (&difference)[kValues]) {
  Real part[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kValues; ++i) part[i % 4] += difference[i] * difference[i];
  const bool tiny = sizeof(Real) == 4 && (part[0] + part[1]) + (part[2] + part[3]) < Real(1e-30);
  if (tiny) {  // Rare but for equal features: differences below 1e-15, squared 2^100 times as large.
    part[0] = part[1] = part[2] = part[3] = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Real larger = difference[i] * Real(kLift);
      part[i % 4] += larger * larger;
    }
  }
  const double whole = (double(part[0]) + double(part[1])) + (double(part[2]) + double(part[3]));
  return tiny ? whole * (1 / (kLift * kLift)) : whole;
}

__device__ inline double finite_or_inf(double d2) { return d2 < INFINITY ? d2 : INFINITY; }

// The warp's share of the squared distances of a turn's rows to `partial`, [warps][kRows] of double; added to it, if `more`.
template <int kRows>
__device__ __forceinline__ void share_distances(double* partial, double (&d2)[kRows], bool more) {
  const double share = warp_sums(d2);
  double& place = partial[this_team().warp * kRows + lane_id() % kRows];
  if (lane_id() < kRows) place = more ? place + share : share;
}

// The squared distance of row l to lane l of every warp, once all shares are there.
template <int kRows>
__device__ __forceinline__ double whole_distance(const double* partial) {
  double whole = 0;
#pragma unroll
  for (int w = 0; w < kTeam / kWarp; ++w)
    if (w < this_team().warps()) whole += partial[w * kRows + lane_id() % kRows];
  return finite_or_inf(whole);
}

// d2 of the task's list[0..n). If its power > 0: also sum = sum over c < k of (x - y) / d^power, where d is neither
// tiny nor infinite, and the index of those becomes 2 j + 1, of the others 2 j; then rows have at most columns_at_once(D)
// columns. x and the references of a turn are in shared memory, differences and sums in registers.
template <class T, bool kBulk, int kValues>
__device__ __forceinline__ void evaluate(TeamShared<RealOf<T>> shared) {
  using Real = RealOf<T>;
  constexpr int kRows = Ring<T, kBulk, kValues>::kRows;
  static_assert(2 * kRows * kTeam / kWarp <= TeamShared<Real>::kScratch);
  const Arguments& a = arguments();
  Ring<T, kBulk, kValues> ring(shared);
  ring.start();
  Real sum[kValues] = {};
  for (int first = 0; first < shared.task().n; first += kRows) {
    Real difference[kRows][kValues];
    // One barrier is enough, because two sets of partial sums take turns.
    const int partial = shared.scratch_at() + first / kRows % 2 * kRows * (kTeam / kWarp) * int(sizeof(double));
#pragma unroll 1
    for (int chunk = 0;; ++chunk) {
      ring.wait();
      const int c = 4 * this_team().thread, stride = 4 * this_team().threads;
      const int from = chunk * kValues / 4 * stride, left = a.p.D - from;
      const Real unit = Real(shared.task().unit);
      if (kValues / 4 * stride <= left) subtract<true>(shared.x() + from + c, ring, c, stride, 0, unit, difference);
      else subtract<false>(shared.x() + from + c, ring, c, stride, left - c, unit, difference);
      double d2[kRows];
#pragma unroll
      for (int t = 0; t < kRows; ++t) d2[t] = sum_of_squares(difference[t]);
      share_distances(shared_at<double>(partial), d2, chunk > 0);
      if (chunk + 1 == a.plan.chunks) break;
      this_team().sync();
      ring.pass(first / kRows * a.plan.chunks + chunk);
    }
    this_team().sync();
    ring.pass((first / kRows + 1) * a.plan.chunks - 1);
    const double whole = whole_distance<kRows>(shared_at<double>(partial));
    // Lane t of every warp looks after reference t.
    const int lane = lane_id(), j = first + lane, power = shared.task().power;
    const bool mine = lane < kRows && j < shared.task().n;
    const bool summed = power > 0 && mine && j < a.r.k && whole > 1e-30 && whole < INFINITY;  // in float32's range
    if (this_team().warp == 0 && mine) shared.list()[j] = {whole, 2 * shared.list()[j].index + summed};
    if (power == 0) continue;
    const float inverse = summed ? rsqrtf(float(whole)) : 0.0f;  // within 2 ulp
    const float one = power == 2 ? inverse * inverse : inverse;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float weight = __shfl_sync(kAllLanes, one, t);
      if (weight == 0) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] += difference[t][i] * weight;
    }
  }
  ring.finish();
  if (shared.task().power == 0) return;
  const int c = 4 * this_team().thread, stride = 4 * this_team().threads;
#pragma unroll
  for (int i = 0; i < kValues; i += 4)
    if (c + i / 4 * stride < a.p.D)
      *reinterpret_cast<Four<Real>*>(shared.sum() + c + i / 4 * stride) = {sum[i], sum[i + 1], sum[i + 2], sum[i + 3]};
}

}  // namespace ldreg::cuda
