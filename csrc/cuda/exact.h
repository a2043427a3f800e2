// Exact distances of a query to listed references, by float32 differences; a reference that is in registers anyway can be
// added to the query's gradient, too.
//
// Contract: d2 = sum_c (u (x_c - y_c))^2 with u a power of two. A few squares of a thread are added in float32, everything
// else in double, in one order. No matrix-product form, so no cancellation at any offset. Pairs that NaN or Inf touches
// get +inf. A team takes a few references at a time, every thread four columns in 512: the sums for the gradient are then
// each in one thread, and the only thing threads exchange is a distance.
#pragma once

#include "team.h"

namespace ldreg::cuda {

// Rows that `evaluate` reads once: a thread holds kValues of their features.
template <int kValues>
constexpr int kWidest = kValues * kTeam;

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

template <class Real, int kValues>
__device__ __forceinline__ double sum_of_squares(const Real (&difference)[kValues]) {
  Real part[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kValues; ++i) part[i % 4] += difference[i] * difference[i];
  return (double(part[0]) + double(part[1])) + (double(part[2]) + double(part[3]));
}

__device__ inline double finite_or_inf(double d2) { return d2 < INFINITY ? d2 : INFINITY; }

// list[c].d2 for c < n. If power > 0 (and D <= kWidest): also sum = sum over c < guessed of (x - y) / d^power, where
// 0 < d < inf, and the index of those becomes 2 j + 1, of the others 2 j. kTogether references at a time.
template <class T, int kValues, int kTogether>
__device__ __forceinline__ void evaluate(const Arguments& a, const Team& team, const TeamShared<RealOf<T>>& shared, int n,
                                         double unit64, int power, int guessed) {
  using Real = RealOf<T>;
  constexpr int kWarps = kTeam / kWarp, kStride = 4 * kTeam;
  static_assert(2 * kTogether * kWarps <= TeamShared<Real>::kScratch);
  const Real unit = Real(unit64);
  const int columns = TeamShared<Real>::columns(a.p.D);
  const T* y = static_cast<const T*>(a.p.y);
  float sum[kValues] = {};
  for (int first = 0; first < n; first += kTogether) {
    Real difference[kTogether][kValues];
    double d2[kTogether] = {};
    for (int from = 0; from < a.p.D; from += kWidest<kValues>) {
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const int j = shared.list[smaller(first + t, n - 1)].index;
        load_groups<T, kValues>(y + j * a.p.y_stride, from + 4 * team.thread, kStride, a.p.D, a.p.aligned, difference[t]);
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        subtract(shared.x, from + 4 * team.thread, kStride, unit, columns, difference[t]);
        d2[t] += sum_of_squares(difference[t]);
      }
    }
    // One barrier is enough, because two sets of partial sums take turns.
    double* partial = shared.scratch + first / kTogether % 2 * kTogether * kWarps;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const double mine = warp_sum(d2[t]);
      if (team.lane == 0) partial[t * kWarps + team.warp] = mine;
    }
    team.sync();
    // Lane t of every warp looks after reference t.
    double whole = 0;
    if (team.lane < kTogether)
      for (int w = 0; w < kWarps; ++w) whole += partial[team.lane * kWarps + w];
    whole = finite_or_inf(whole);
    const int c = first + team.lane;
    const bool summed = power > 0 && team.lane < kTogether && c < guessed && c < n && whole > 0 && whole < INFINITY;
    if (team.warp == 0 && team.lane < kTogether && c < n) shared.list[c] = {whole, 2 * shared.list[c].index + summed};
    if (power == 0) continue;
    const float mine = summed ? float(1 / sqrt(whole)) : 0.0f;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const float weight = __shfl_sync(kAllLanes, mine, t), again = power == 2 ? weight : 1.0f;
      if (weight == 0) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] += float(difference[t][i]) * again * weight;
    }
  }
  if (power == 0) return;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int c = 4 * team.thread + i / 4 * kStride + i % 4;
    if (c < columns) shared.sum[c] = sum[i];
  }
}

}  // namespace ldreg::cuda
