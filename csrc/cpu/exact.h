// Exact evaluation: squared distances as sums of squared differences, and the gradient gathered from the same rows.
//
// d2_ij = sum_c (x_ic - y_jc)^2 in Real (float; double for double features), kColumnBlock columns at a time whose sums
// are added in double. No matrix-product form: no cancellation at any offset; no long float sums: as exact at D = 65536
// as at 16. What leaves the number range is taken again on another scale (`beyond_range`), which covers every distance
// that is a finite number. For scattered references; direct.h has the same sums for blocks of pairs.
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

// Whether this is the square itself: of float features, always.
template <class T>
inline bool is_square(double d2) {
  return sizeof(typename Compute<T>::Real) == 4 || (d2 >= kLeastSquare && d2 <= kMostSquare);
}

// 2^exponent times the distance between two rows of T that a (coded) square stands for.
template <class T>
inline double distance_of(double d2, int exponent = 0) {
  if (!is_square<T>(d2)) {
    const double root = d2 > 1 ? d2 / kMostSquare : d2 / kLeastSquare, square = root * root;
    return std::ldexp(square * square, (d2 > 1 ? 400 : -400) + exponent);
  }
  return std::sqrt(d2) * std::ldexp(1.0, exponent);
}

// The power of two that brings such a distance near 1 (2^+-1000 at most, so that its inverse is a normal number too);
// 0 for distances that are none.
template <class T>
inline int exponent_of(double d2) {
  if (!(d2 > 0 && d2 < std::numeric_limits<double>::infinity())) return 0;
  const int shrink = !is_square<T>(d2) && d2 > 1 ? 400 : 0;  // of a distance that may be none as a double
  return std::min(std::max(-std::ilogb(distance_of<T>(d2, -shrink)) - shrink, -1000), 1000);
}

template <class T>
inline bool equal_rows(const T* x, const T* y, int64_t columns) {
  constexpr int w = lanes<T>;
  auto differs = load_tail(x, 0) != load_tail(y, 0);
  for (int64_t c = 0; c + w <= columns; c += w) differs |= load(x + c) != load(y + c);
  const int64_t left = columns % w;
  differs |= load_tail(x + columns - left, left) != load_tail(y + columns - left, left);
  for (int l = 0; l < w; ++l)
    if (differs[l]) return false;
  return true;
}

// One pair whose squares leave the range of Real, or vanish: float features in double; double features by a power of two.
template <class T>
LDREG_HOT double beyond_range(const T* x, const T* y, int64_t columns, double d2) {
  using Real = typename Compute<T>::Real;
  constexpr int w = lanes<T>;
  constexpr bool wide = sizeof(Real) == 8;
  if (d2 == 0 && (x == y || equal_rows(x, y, columns))) return 0;
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

// d2[r] = |x - y[r]|^2: four references share the loads of the query. (Fetching the next four rows meanwhile was slower:
// rows are long enough for the hardware's prefetcher, and the loads compete.)
template <class T>
LDREG_HOT void add_squares(const T* x, const T* const* y, int64_t columns, double* d2) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  const T* row[4] = {y[0], y[1], y[2], y[3]};
  Doubles total[4] = {};
  for (int64_t c = 0; c < columns;) {
    const int64_t end = std::min(columns, c + kColumnBlock<T>);
    Vec sum[4] = {};
    for (; c + w <= end; c += w) {
      const Vec own = load(x + c);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vec d = own - load(row[r] + c);
        sum[r] += d * d;
      }
    }
    if (c < end) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vec d = load_tail(x + c, end - c) - load_tail(row[r] + c, end - c);
        sum[r] += d * d;
      }
      c = end;
    }
    for (int r = 0; r < 4; ++r) total[r] += widen(sum[r]);
  }
  sum_each(total, d2);
}

// Whether a sum of squares can be trusted; else `beyond_range`.
template <class T>
inline bool in_range(double d2) {
  return sizeof(typename Compute<T>::Real) == 8 ? d2 >= kLeastSquare && d2 <= kMostSquare : d2 >= 1e-30 && d2 <= 1e36;
}

template <class T>
inline void squared_distances(const T* x, const T* const* y, int64_t columns, double* d2) {
  add_squares(x, y, columns, d2);
  for (int r = 0; r < 4; ++r)
    if (!in_range<T>(d2[r])) d2[r] = beyond_range(x, y[r], columns, d2[r]);
}

// Neighbours whose rows are read side by side: enough streams for the hardware to fetch ahead of, and, with x and the
// gradient, not more lines than an L1 set of eight holds (rows of a power of two bytes all fall into one set).
constexpr int kGradientRows = 6;

// grad[0..columns) (+)= sum_r weight[r] (x - y[r]).
template <class T>
LDREG_HOT void add_weighted(const T* x, const T* const* y, const typename Compute<T>::Real* weight, int64_t columns,
                            bool first, typename Compute<T>::Real* grad) {
  using Vec = typename Compute<T>::Vec;
  constexpr int w = lanes<T>;
  Vec factor[kGradientRows];
  const T* row[kGradientRows];
  for (int r = 0; r < kGradientRows; ++r) factor[r] = weight[r] - Vec{}, row[r] = y[r];
  int64_t c = 0;
  for (; c + w <= columns; c += w) {
    Vec sum = {};
    if (!first) sum = load(grad + c);
    const Vec own = load(x + c);
#pragma GCC unroll 6
    for (int r = 0; r < kGradientRows; ++r) sum += factor[r] * (own - load(row[r] + c));
    std::memcpy(grad + c, &sum, sizeof sum);
  }
  if (c == columns) return;
  const int64_t m = columns - c;
  Vec sum = {};
  if (!first) sum = load_tail(grad + c, m);
  for (int r = 0; r < kGradientRows; ++r) sum += factor[r] * (load_tail(x + c, m) - load_tail(row[r] + c, m));
  std::memcpy(grad + c, &sum, m * sizeof(sum[0]));
}

// grad[0..columns) = f0 f1 f2 sum_j weight[j] (x - y_j), for the n rows y_j = row(j). The factors are multiplied in one
// after the other: their product may lie outside float's range where the gradient does not.
template <class T, class Row>
inline void gather_gradient(const T* x, Row&& row, const typename Compute<T>::Real* weight, int n, int64_t columns,
                            const typename Compute<T>::Real (&factor)[3], typename Compute<T>::Real* grad) {
  using Real = typename Compute<T>::Real;
  for (int j = 0; j < n; j += kGradientRows) {
    const T* rows[kGradientRows];
    Real weights[kGradientRows];
    for (int r = 0; r < kGradientRows; ++r) {
      rows[r] = row(std::min(j + r, n - 1));
      weights[r] = j + r < n ? weight[j + r] : 0;
    }
    add_weighted(x, rows, weights, columns, j == 0, grad);
  }
  for (int64_t c = 0; c < columns; ++c) grad[c] = grad[c] * factor[0] * factor[1] * factor[2];
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
      for (int l = 0; l < w; ++l) {  // large values before their difference, which may be no number; else exact
        const double a = own[l], b = other[l];
        total[l] += weight[j] * ((unit < 1 ? a * unit - b * unit : (a - b) * unit) / d[j]);
      }
    }
    for (int64_t l = 0; l < m; ++l) grad[c + l] = static_cast<Real>(total[l] * unit);
  }
}

}  // namespace LDREG_ISA
}  // namespace ldreg
