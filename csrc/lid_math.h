// The formulas of LID and LDReg, once, for host and device: estimators, their derivatives, loss forms.
//
// d[0..k-1] are neighbour distances with the largest at d[k-1]; the nearer ones may be in any order, except that `mada`
// needs the h-th smallest at d[h-1], h = floor(k/2). m = mean of the nearer ones, a = d_k - m, S = sum ln(d_k / d_j).
//
//   name           LID                    d lnLID / d d_j (j<k)    d lnLID / d d_k
//   mom            m / a                  d_k / ((k-1) m a)        -1 / a
//   mom_amsaleg    M / A (means over k)   d_k / (k M A)            (d_k/k - M) / (M A)
//   mle            k / S_e                1 / (S_e (d_j + e d_k))  -sum_j d_j / (d_j + e d_k) / (S_e d_k)
//   hill           (k-1) / S              1 / (S d_j)              -(k-1) / (S d_k)
//   hill_unbiased  (k-2) / S              as hill                  as hill
//   mada           ln 2 / ln(d_k/d_h)     j=h: 1/(d_h ln(d_k/d_h)) -1 / (d_k ln(d_k/d_h))
//
// All are scale-free, so callers may pass distances in any unit. This file does not know about rows, indices or memory.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define LDREG_HD __host__ __device__ inline
#define LDREG_NOINLINE __noinline__
#else
#define LDREG_HD inline
#define LDREG_NOINLINE
#endif

// Translation units compiled for different instruction sets must not share inline functions: the linker would keep one
// copy, possibly the one this machine cannot execute. Each such unit defines LDREG_ISA to its own name.
#ifndef LDREG_ISA
#define LDREG_ISA portable
#endif

namespace ldreg {
inline namespace LDREG_ISA {

enum class Estimator : int { mom, mom_amsaleg, mle, hill, hill_unbiased, mada };
enum class Form : int { l1, l1_abs, l2, min, target };

constexpr double kMleEpsilon = 1e-4;  // the published constant
constexpr double kLidMax = 1e6;       // at or above: the distances are equal as far as float32 distances can tell

// The rank besides k whose order statistic the estimator reads (0 = none).
LDREG_HD int second_rank(Estimator e, int k) { return e == Estimator::mada ? k / 2 : 0; }

// In device code a function of its own: in line, a loop's registers would be full of its constants.
template <class Real>
LDREG_NOINLINE LDREG_HD Real lid_log(Real v) {
  return std::log(v);
}

template <class Real>
struct LidTerms {
  Estimator estimator;
  Real lid;         // NaN if degenerate, 0 if the nearer distances vanish
  bool degenerate;  // ln LID does not exist
  Real near;        // the factor of d lnLID / d d_j shared by j < k
  Real far;         // d lnLID / d d_k
  Real shift;       // e d_k for mle
};

// sum_{j<n} ln(d_j / scale + shift), eight factors to a logarithm: a product of ratios is as accurate as a sum of their
// logarithms, unless it underflows.
template <class Real>
LDREG_HD Real sum_log_ratios(const Real* d, int n, Real scale, Real shift) {
  Real sum = 0;
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    Real product = 1;
    for (int t = 0; t < 8; ++t) product *= d[j + t] / scale + shift;
    if (product > Real(1e-290)) sum += std::log(product);
    else for (int t = 0; t < 8; ++t) sum += std::log(d[j + t] / scale + shift);
  }
  for (; j < n; ++j) sum += std::log(d[j] / scale + shift);
  return sum;
}

// What an estimator needs to know of all nearer distances: two sums of `lid_share` over j < lid_summed(e, k).
template <class Real>
struct LidSums {
  Real one, two;
};

LDREG_HD int lid_summed(Estimator e, int k) { return e == Estimator::mada ? 0 : e == Estimator::mom_amsaleg ? k : k - 1; }

// One distance's share, for those who add up in parallel; 0 < d_k < inf. Hill's first sum is infinite if some d_j is 0.
template <class Real>
LDREG_HD LidSums<Real> lid_share(Estimator e, Real d_j, Real d_k) {
  switch (e) {
    case Estimator::mom:
    case Estimator::mom_amsaleg: return {d_j, d_k - d_j};  // a as a mean of differences: d_k - m would cancel
    case Estimator::mle:
      return {-lid_log(d_j / d_k + Real(kMleEpsilon)), d_j / (d_j + Real(kMleEpsilon) * d_k)};
    case Estimator::mada: return {0, 0};
    default: return {d_j == 0 ? Real(INFINITY) : -lid_log(d_j / d_k), 0};
  }
}

// LID and its derivatives from those sums, the largest distance, and d_h (read by mada only).
template <class Real>
LDREG_HD LidTerms<Real> lid_terms(Estimator e, int k, Real d_k, Real d_h, LidSums<Real> sums) {
  LidTerms<Real> t{e, Real(std::nan("")), false, 0, 0, 0};
  if (!(d_k < Real(INFINITY))) return t;  // NaN or Inf reached this row: LID NaN, not degenerate
  t.degenerate = true;
  if (d_k == 0) return t;

  Real lid = 0;
  switch (e) {
    case Estimator::mom: {
      const Real m = sums.one / (k - 1), a = sums.two / (k - 1);
      lid = m / a;
      t.near = d_k / a / ((k - 1) * m);  // not over m a, which may leave the range of numbers
      t.far = -1 / a;
      break;
    }
    case Estimator::mom_amsaleg: {
      const Real m = sums.one / k, a = sums.two / k;
      lid = m / a;
      t.near = d_k / a / (k * m);
      t.far = (d_k / k - m) / m / a;
      break;
    }
    case Estimator::mle:
      lid = k / sums.one;
      t.shift = Real(kMleEpsilon) * d_k;
      t.near = 1 / sums.one;
      t.far = -sums.two / (sums.one * d_k);
      break;
    case Estimator::hill:
    case Estimator::hill_unbiased:
      lid = (k - (e == Estimator::hill ? 1 : 2)) / sums.one;
      t.near = 1 / sums.one;
      t.far = -(k - 1) / (sums.one * d_k);
      break;
    case Estimator::mada: {
      const Real s = d_h == 0 ? Real(INFINITY) : -lid_log(d_h / d_k);
      lid = Real(0.69314718055994530942) / s;
      t.near = 1 / (d_h * s);
      t.far = -1 / (d_k * s);
      break;
    }
  }
  if (!(lid >= 0 && lid < Real(kLidMax))) return t;
  t.lid = lid;
  t.degenerate = lid == 0;
  return t;
}

// The same from the distances themselves, one after another.
template <class Real>
LDREG_HD LidTerms<Real> lid_terms(Estimator e, const Real* d, int k) {
  const Real d_k = d[k - 1], d_h = e == Estimator::mada ? d[k / 2 - 1] : Real(0);
  LidSums<Real> sums{0, 0};
  if (d_k > 0 && d_k < Real(INFINITY)) {
    const bool logarithms = e == Estimator::mle || e == Estimator::hill || e == Estimator::hill_unbiased;
    for (int j = 0; j < lid_summed(e, k) && !logarithms; ++j) {
      const LidSums<Real> share = lid_share(e, d[j], d_k);
      sums.one += share.one, sums.two += share.two;
    }
    if (e == Estimator::mle) {
      sums.one = -sum_log_ratios(d, k - 1, d_k, Real(kMleEpsilon));
      for (int j = 0; j < k - 1; ++j) sums.two += d[j] / (d[j] + Real(kMleEpsilon) * d_k);
    } else if (logarithms) {
      bool zero = false;
      for (int j = 0; j < k - 1; ++j) zero |= d[j] == 0;
      sums.one = zero ? Real(INFINITY) : -sum_log_ratios(d, k - 1, d_k, Real(0));
    }
  }
  return lid_terms(e, k, d_k, d_h, sums);
}

// d lnLID / d d_j of the neighbour at position j; 0 for a neighbour at distance 0 (its direction is undefined).
template <class Real>
LDREG_HD Real lid_weight(const LidTerms<Real>& t, int k, int j, Real d_j) {
  if (t.degenerate || d_j == 0) return 0;
  if (j == k - 1) return t.far;
  switch (t.estimator) {
    case Estimator::mle: return t.near / (d_j + t.shift);
    case Estimator::hill:
    case Estimator::hill_unbiased: return t.near / d_j;
    case Estimator::mada: return j == k / 2 - 1 ? t.near : Real(0);
    default: return t.near;
  }
}

// One row's share of the loss before reduction, for every form but l2 (which needs the whole batch), and its
// derivative by ln LID; `goal` is ln of the target LID.
template <class Real>
LDREG_HD void loss_row(Form form, Real ln, Real goal, Real* value, Real* slope) {
  const Real v = form == Form::target ? ln - goal : ln;
  const Real sign = v > 0 ? Real(1) : (v < 0 ? Real(-1) : v);  // NaN stays NaN
  switch (form) {
    case Form::l1_abs: *value = -std::fabs(v), *slope = -sign; return;
    case Form::l2: *value = v * v, *slope = 2 * v; return;
    case Form::min: *value = v, *slope = 1; return;
    case Form::target: *value = std::fabs(v), *slope = sign; return;
    default: *value = -v, *slope = -1; return;
  }
}

}  // namespace LDREG_ISA
}  // namespace ldreg
