// Exact evaluation: squared distances as sums of squared differences, and the gradient gathered from the same rows.
//
// d2_ij = sum_c (x_ic - y_jc)^2 in Real (float; double for double features), kColumnBlock columns at a time whose sums
// are added in double, in one fixed order for every caller, so that a pair's distance has one value. No matrix-product
// form: no cancellation at any offset; no long float sums: as exact at D = 65536 as at 16. What leaves the number range
// is taken again on another scale (`beyond_range`), which covers every distance that is a finite number.
//   gradient of ln LID_i:  sum_j (w_j / d_j) (x_i - y_j), differences again.
#pragma once

#include "operands.h"
#include "../topk.h"

namespace ldreg {
inline namespace LDREG_ISA {

template <class T> constexpr int64_t kColumnBlock = int64_t(kSumSteps) * lanes<T>;

// Squared distances are kept in one double. Beyond [2^-800, 2^800], where only double features lead, it holds the
// fourth root of the distance instead, on a scale that continues the squares: the order stays, and so do 50 bits.
constexpr double kLeastSquare = 0x1p-800, kMostSquare = 0x1p800;

inline double coded_square(double d, double unit) {  // of the distance d * unit, outside the range of squares
  return unit > 1 ? kMostSquare * std::sqrt(std::sqrt(d * (unit * 0x1p-400)))
                  : kLeastSquare * std::sqrt(std::sqrt(d * (unit * 0x1p400)));
}

// The distance between two rows of T that a (coded) square stands for; infinite for +inf and for what exceeds double.
template <class T>
inline double distance_of(double d2) {
  if (sizeof(typename Compute<T>::Real) == 4) return std::sqrt(d2);
  if (d2 > kMostSquare) {
    const double root = d2 / kMostSquare, square = root * root;
    return square * 0x1p200 * (square * 0x1p200);
  }
  if (d2 < kLeastSquare) {
    const double root = d2 / kLeastSquare, square = root * root;
    return square * 0x1p-200 * (square * 0x1p-200);
  }
  return std::sqrt(d2);
}

// One pair whose squares leave the range of Real: float features in double; double features by a power of two.
template <class T>
inline double beyond_range(const T* x, const T* y, int64_t columns, double d2) {
  using Real = typename Compute<T>::Real;
  constexpr int w = lanes<T>;
  constexpr bool wide = sizeof(Real) == 8;
  const bool large = wide && !(d2 < 1);  // inf - inf is no question: only finite rows come here
  const double unit = !wide ? 1 : large ? 0x1p600 : 0x1p-600;
  double total = 0;
  Real a[w], b[w];
  for (int64_t c = 0; c < columns; c += w) {
    const auto left = columns - c >= w ? load(x + c) : load_tail(x + c, columns - c);
    const auto right = columns - c >= w ? load(y + c) : load_tail(y + c, columns - c);
    std::memcpy(a, &left, sizeof a), std::memcpy(b, &right, sizeof b);
    for (int l = 0; l < w; ++l) {  // where the values are large, the difference itself may overflow; else it is exact
      const double d = large ? a[l] / unit - b[l] / unit : (double(a[l]) - double(b[l])) / unit;
      total += d * d;
    }
  }
  if (!wide) return total;
  const double square = total * unit * unit;  // where this is in range after all, so is what it rounds to
  return square >= kLeastSquare && square <= kMostSquare ? square : coded_square(std::sqrt(total), unit);
}

// d2[q * 4 + r] (+)= the squares of columns from..to of x[q] - y[r]: Q queries share the loads of four references and
// these the loads of the queries, so that arithmetic and not the cache is the limit from Q = 4 on. (Fetching the next four
// rows meanwhile was slower: rows are long enough for the hardware's prefetcher, and the loads compete.) Every loop over
// the sums is unrolled: one that is not has them in memory, and GCC may then store them at each step of the others.
template <int Q, class T>
__attribute__((noinline)) void add_squares(const T* const* x, const T* const* y, int64_t from, int64_t to, double* d2) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  for (int64_t c = from; c < to;) {
    const int64_t end = std::min(to, c + kColumnBlock<T>);
    Vec sum[Q][4] = {};
    for (; c + w <= end; c += w) {
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
    if (c < end) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vec other = load_tail(y[r] + c, end - c);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          const Vec d = load_tail(x[q] + c, end - c) - other;
          sum[q][r] += d * d;
        }
      }
      c = end;
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      Doubles wide[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) wide[r] = widen(sum[q][r]);
      double part[4];
      sum_each(wide, part);
      for (int r = 0; r < 4; ++r) d2[q * 4 + r] += part[r];
    }
  }
}

// Whether a sum of squares can be trusted; else `beyond_range`.
template <class T>
inline bool in_range(double d2) {
  return sizeof(typename Compute<T>::Real) == 8 ? d2 >= kLeastSquare && d2 <= kMostSquare : d2 >= 1e-30 && d2 <= 1e36;
}

template <int Q, class T>
inline void squared_distances(const T* const* x, const T* const* y, int64_t columns, double* d2) {
  std::memset(d2, 0, Q * 4 * sizeof *d2);
  add_squares<Q>(x, y, 0, columns, d2);
  for (int p = 0; p < Q * 4; ++p)
    if (!in_range<T>(d2[p])) d2[p] = beyond_range(x[p / 4], y[p % 4], columns, d2[p]);
}

#if LDREG_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kGradientVectors = 8;  // of 32 registers
#else
constexpr int kGradientVectors = 4;  // of 16
#endif
constexpr int kPrefetchRows = 6;  // rows are scattered: what the hardware does not foresee is asked for so far ahead

// V vectors of the gradient from column c on: see gather_gradient.
template <int V, class T, class Row>
__attribute__((noinline)) void gather_columns(const T* x, Row&& row, const typename Compute<T>::Real* weight, int n,
                                              int64_t c, const typename Compute<T>::Real (&factor)[3],
                                              typename Compute<T>::Real* grad) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  Vec own[V], sum[V] = {};
  for (int v = 0; v < V; ++v) own[v] = load(x + c + v * w);
  for (int j = 0; j < n; ++j) {
    const T* y = row(j) + c;
    if (V > 1) {
      const char* later = reinterpret_cast<const char*>(row(std::min(j + kPrefetchRows, n - 1)) + c);
#pragma GCC unroll 8
      for (int line = 0; line < V * w * int(sizeof(T)); line += 64) __builtin_prefetch(later + line);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] += weight[j] * (own[v] - load(y + v * w));
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Vec g = sum[v] * factor[0] * factor[1] * factor[2];
    std::memcpy(grad + c + v * w, &g, sizeof g);
  }
}

// grad[0..columns) = f0 f1 f2 sum_j weight[j] (x - y_j), for the n rows y_j = row(j). The factors are multiplied in one
// after the other: their product may lie outside float's range where the gradient does not.
template <class T, class Row>
inline void gather_gradient(const T* x, Row&& row, const typename Compute<T>::Real* weight, int n, int64_t columns,
                            const typename Compute<T>::Real (&factor)[3], typename Compute<T>::Real* grad) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  int64_t c = 0;
  for (; c + kGradientVectors * w <= columns; c += kGradientVectors * w)
    gather_columns<kGradientVectors>(x, row, weight, n, c, factor, grad);
  for (; c + w <= columns; c += w) gather_columns<1>(x, row, weight, n, c, factor, grad);
  if (c == columns) return;
  const int64_t m = columns - c;
  const Vec own = load_tail(x + c, m);
  Vec sum = {};
  for (int j = 0; j < n; ++j) sum += weight[j] * (own - load_tail(row(j) + c, m));
  const Vec g = sum * factor[0] * factor[1] * factor[2];
  std::memcpy(grad + c, &g, m * sizeof(g[0]));
}

// The same in double, for distances and weights that the fast form's numbers cannot hold:
//   grad = unit sum_j weight[j] ((x - y_j) unit / d[j]),   d in units of 1 / unit; neighbours with weight 0 are left out.
template <class T, class Row>
inline void gather_gradient_wide(const T* x, Row&& row, const double* weight, const double* d, double unit, int n,
                                 int64_t columns, typename Compute<T>::Real* grad) {
  using Real = typename Compute<T>::Real;
  constexpr int w = lanes<T>;
  for (int64_t c = 0; c < columns; c += w) {
    const int64_t m = std::min<int64_t>(w, columns - c);
    double total[w] = {};
    Real own[w], other[w];
    const auto left = load_tail(x + c, m);
    std::memcpy(own, &left, sizeof own);
    for (int j = 0; j < n; ++j) {
      if (weight[j] == 0) continue;
      const auto right = load_tail(row(j) + c, m);
      std::memcpy(other, &right, sizeof other);
      for (int l = 0; l < w; ++l) total[l] += weight[j] * ((double(own[l]) - double(other[l])) * unit / d[j]);
    }
    for (int64_t l = 0; l < m; ++l) grad[c + l] = static_cast<Real>(total[l] * unit);
  }
}

}  // namespace LDREG_ISA
}  // namespace ldreg
