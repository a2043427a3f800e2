// Exact evaluation: squared distances as sums of squared differences, and the gradient gathered from the same rows.
//
// d2_ij = sum_c (x_ic - y_jc)^2 in Real (float; double for double features), in one fixed order of summation for every
// caller, so that a pair's distance has one value; only the last additions, across lanes, are in double. No matrix-product form: no cancellation at any offset. A float sum that
// leaves [1e-30, 1e36] is taken again in double, which covers features from 1e-38 to 1e38.
//   gradient of ln LID_i:  sum_j (w_j / d_j) (x_i - y_j), differences again.
#pragma once

#include "operands.h"
#include "../topk.h"

namespace ldreg {
inline namespace LDREG_ISA {

template <class T>
inline double squared_distance_wide(const T* x, const T* y, int64_t columns) {
  constexpr int w = lanes<T>;
  f64x8 sum = {};
  for (int64_t c = 0; c < columns; c += w) {
    const auto a = columns - c >= w ? load(x + c) : load_tail(x + c, columns - c);
    const auto b = columns - c >= w ? load(y + c) : load_tail(y + c, columns - c);
    if constexpr (w == 16) {
      f32x8 ah[2], bh[2];
      std::memcpy(ah, &a, sizeof a), std::memcpy(bh, &b, sizeof b);
      for (int h = 0; h < 2; ++h) {
        const f64x8 d = __builtin_convertvector(ah[h], f64x8) - __builtin_convertvector(bh[h], f64x8);
        sum += d * d;
      }
    } else {
      sum += (a - b) * (a - b);
    }
  }
  return ldreg::sum(sum);
}

// d2[q * 4 + r] from x[q] to y[r]: Q queries share the loads of four references and these the loads of the queries, so
// that arithmetic and not the cache is the limit from Q = 4 on. (Fetching the next four rows meanwhile was slower: rows are
// long enough for the hardware's prefetcher, and the loads compete.)
template <int Q, class T>
inline void squared_distances(const T* const* x, const T* const* y, int64_t columns, double* d2) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  Vec sum[Q][4] = {};
  int64_t c = 0;
  for (; c + w <= columns; c += w) {
    Vec own[Q];
    for (int q = 0; q < Q; ++q) own[q] = load(x[q] + c);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Vec other = load(y[r] + c);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const Vec d = own[q] - other;
        sum[q][r] += d * d;
      }
    }
  }
  if (c < columns) {
    for (int r = 0; r < 4; ++r) {
      const Vec other = load_tail(y[r] + c, columns - c);
      for (int q = 0; q < Q; ++q) {
        const Vec d = load_tail(x[q] + c, columns - c) - other;
        sum[q][r] += d * d;
      }
    }
  }
  for (int q = 0; q < Q; ++q) {
    f64x8 wide[4];
    for (int r = 0; r < 4; ++r) wide[r] = widen(sum[q][r]);
    sum_each(wide, d2 + 4 * q);
    for (int r = 0; r < 4; ++r)
      if (lanes<T> == 16 && !(d2[4 * q + r] >= 1e-30 && d2[4 * q + r] <= 1e36))
        d2[4 * q + r] = squared_distance_wide(x[q], y[r], columns);
  }
}

// grad[0..columns) = f1 f2 sum_j weight[j] (x - y_j), for the n rows y_j = row(j). The factors are multiplied in one after
// the other: their product may lie outside float's range where the gradient does not.
template <class T, class Row>
inline void gather_gradient(const T* x, Row&& row, const typename Compute<T>::Real* weight, int n, int64_t columns,
                            typename Compute<T>::Real f1, typename Compute<T>::Real f2,
                            typename Compute<T>::Real* grad) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>, unroll = 8;
  int64_t c = 0;
  for (; c + unroll * w <= columns; c += unroll * w) {
    Vec own[unroll], sum[unroll] = {};
    for (int u = 0; u < unroll; ++u) own[u] = load(x + c + u * w);
    for (int j = 0; j < n; ++j) {
      const T* y = row(j) + c;
#pragma GCC unroll 8
      for (int u = 0; u < unroll; ++u) sum[u] += weight[j] * (own[u] - load(y + u * w));
    }
    for (int u = 0; u < unroll; ++u) {
      const Vec g = sum[u] * f1 * f2;
      std::memcpy(grad + c + u * w, &g, sizeof g);
    }
  }
  for (; c < columns; c += w) {
    const int64_t m = std::min<int64_t>(w, columns - c);
    const Vec own = load_tail(x + c, m);
    Vec sum = {};
    for (int j = 0; j < n; ++j) sum += weight[j] * (own - load_tail(row(j) + c, m));
    const Vec g = sum * f1 * f2;
    std::memcpy(grad + c, &g, m * sizeof(g[0]));
  }
}

}  // namespace LDREG_ISA
}  // namespace ldreg
