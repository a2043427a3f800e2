// Exact distances of a query to listed references, by float32 differences; a reference that is in registers anyway can be
// added to the query's gradient, too.
//
// Contract: d2 = sum_c (u (x_c - y_c))^2 with u a power of two. A few squares of a thread are added in float32, everything
// else in double, in one order; where those few would underflow, they are taken of larger differences. No matrix-product form, so no cancellation at any offset. Pairs that NaN or Inf touches
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

constexpr double kLift = 1.2676506002282294e30;  // 2^100

template <class Real, int kValues>
__device__ __forceinline__ double sum_of_squares(const Real (&difference)[kValues]) {
  Real part[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kValues; ++i) part[i % 4] += difference[i] * difference[i];
  if (sizeof(Real) == 4 && (part[0] + part[1]) + (part[2] + part[3]) < Real(1e-30)) {
    // Rare but for equal features: differences below 1e-15, squared 2^100 times as large.
    part[0] = part[1] = part[2] = part[3] = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Real larger = difference[i] * Real(kLift);
      part[i % 4] += larger * larger;
    }
    return ((double(part[0]) + double(part[1])) + (double(part[2]) + double(part[3]))) * (1 / (kLift * kLift));
  }
  return (double(part[0]) + double(part[1])) + (double(part[2]) + double(part[3]));
}

template <class Real, int kValues>
__device__ __forceinline__ Four<float> four_of(const Real (&v)[kValues], int i) {
  return {float(v[i]), float(v[i + 1]), float(v[i + 2]), float(v[i + 3])};
}

__device__ inline double finite_or_inf(double d2) { return d2 < INFINITY ? d2 : INFINITY; }

// d2 of the task's list[0..n). If its power > 0: also sum += sum over c < guessed of (x - y) / d^power, where d is neither
// tiny nor infinite, and the index of those becomes 2 j + 1, of the others 2 j. kTogether references at a time; if it is 1,
// differences wait in shared memory for their distance, and a thread needs few registers. Else rows are at most
// kWidest<kValues> wide where power > 0.
template <class T, int kValues, int kTogether>
__device__ __forceinline__ void evaluate(TeamShared<RealOf<T>> shared, int guessed) {
  using Real = RealOf<T>;
  constexpr int kWarps = kTeam / kWarp, kStride = 4 * kTeam;
  constexpr bool kPark = kTogether == 1;
  static_assert(2 * kTogether * kWarps <= TeamShared<Real>::kScratch);
  const Arguments& a = arguments();
  for (int first = 0; first < shared.task().n; first += kTogether) {
    Real difference[kTogether][kValues];
    double d2[kTogether] = {};
    for (int from = 0; from < a.p.D; from += kWidest<kValues>) {
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const int j = shared.list()[smaller(first + t, shared.task().n - 1)].index;
        const T* row = static_cast<const T*>(a.p.y) + j * a.p.y_stride;
        load_groups<T, kValues>(row, from + 4 * this_team().thread, kStride, a.p.D, a.p.aligned, difference[t]);
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        subtract(shared.x(), from + 4 * this_team().thread, kStride, Real(shared.task().unit), shared.task().columns,
                 difference[t]);
        d2[t] += sum_of_squares(difference[t]);
      }
      if constexpr (kPark) {
        if (shared.task().power == 0) continue;
#pragma unroll
        for (int i = 0; i < kValues; i += 4) {
          const int c = from + 4 * this_team().thread + i / 4 * kStride;
          if (c < shared.task().columns) *shared.parked(c) = four_of(difference[0], i);
        }
      }
    }
    // One barrier is enough, because two sets of partial sums take turns.
    double* partial = shared.scratch() + first / kTogether % 2 * kTogether * kWarps;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const double mine = warp_sum(d2[t]);
      if (lane_id() == 0) partial[t * kWarps + this_team().warp] = mine;
    }
    this_team().sync();
    // Lane t of every warp looks after reference t.
    double whole = 0;
    const int lane = lane_id(), c = first + lane;
    const bool mine = lane < kTogether && c < shared.task().n;
    if (mine)
      for (int w = 0; w < kWarps; ++w) whole += partial[lane * kWarps + w];
    whole = finite_or_inf(whole);
    const int power = shared.task().power;
    const bool summed = power > 0 && mine && c < guessed && whole > 1e-30 && whole < INFINITY;  // in float32's range
    if (this_team().warp == 0 && mine) shared.list()[c] = {whole, 2 * shared.list()[c].index + summed};
    if (power == 0) continue;
    const float inverse = summed ? rsqrtf(float(whole)) : 0.0f;  // within 2 ulp
    float weight[kTogether];
#pragma unroll
    for (int t = 0; t < kTogether; ++t) weight[t] = __shfl_sync(kAllLanes, inverse, t);
    // Sums are in shared memory, each its thread's own: registers hold references on their way.
    for (int from = 0; from < a.p.D; from += kWidest<kValues>) {
#pragma unroll
      for (int i = 0; i < kValues; i += 4) {
        const int column = from + 4 * this_team().thread + i / 4 * kStride;
        if (column >= shared.task().columns) continue;
        Four<float>& sum = *reinterpret_cast<Four<float>*>(shared.sum() + column);
        Four<float> now = sum;
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          const Four<float> v = kPark ? *shared.parked(column) : four_of(difference[t], i);
#pragma unroll
          for (int m = 0; m < 4; ++m)
            if (weight[t] != 0) now.v[m] += v.v[m] * (power == 2 ? weight[t] : 1.0f) * weight[t];
        }
        sum = now;
      }
    }
  }
}

}  // namespace ldreg::cuda
