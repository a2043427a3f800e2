// LID on the CPU: the search, and a sink that turns each row's neighbours into every estimate asked for and the gradient.
//
// All estimates come from one list: it is ordered only as far as the estimators look (the k-th smallest for every k, and
// mada's k/2-th), never sorted. Distances enter the formulas divided by a power of two near d_k, so that no power of a
// distance leaves the number range; LID has no unit and the gradient gets the factor back. (Distances below 1e-300 of d_k,
// which only double features have, count as 0.)
#pragma once

#include "search.h"

namespace ldreg {
inline namespace LDREG_ISA {

struct LidScratch {
  Buffer<double> distance;
  Buffer<double> weight;  // [2k] in double, then as Real
  Buffer<float> keys;
};

// The ranks (1-based) at which the list must be split, largest first.
inline int ranks_of(const LidRequest& request, int* ranks) {
  int n = 0;
  for (int t = -1; t < request.track_count; ++t) {
    const Estimator e = static_cast<Estimator>(t < 0 ? request.estimator : request.tracks[t].estimator);
    const int k = t < 0 ? request.k : request.tracks[t].k;
    ranks[n++] = k;
    if (second_rank(e, k) > 0) ranks[n++] = second_rank(e, k);
  }
  std::sort(ranks, ranks + n, [](int a, int b) { return a > b; });
  return int(std::unique(ranks, ranks + n) - ranks);
}

// Where the gradient is summed in Real: weights that differ by less than this factor, d_k within 2^+-this (together, terms
// stay above the subnormals). Else in double.
template <class Real> constexpr double kWeightRange = sizeof(Real) == 4 ? 0x1p60 : 0x1p400;
template <class Real> constexpr int kDistanceRange = sizeof(Real) == 4 ? 60 : 400;

template <class T>
class LidRow {
 public:
  using Real = typename Compute<T>::Real;

  LidRow(const Problem& problem, const LidRequest& request, const LidOutput& out)
      : problem_(problem), request_(request), out_(out), ranks_(2 * (request.track_count + 1)) {
    rank_count_ = ranks_of(request, ranks_.get());
    if (out.grad) prefer_large_pages(out.grad, problem.x.rows * problem.columns * sizeof(Real));
  }

  void operator()(const Search<T>& search, int64_t i, Neighbour* list, int n, LidScratch& scratch) const {
    // Each split leaves its k-th smallest at [k-1] and works on those before it next.
    for (int r = 0, size = n; r < rank_count_; size = ranks_[r++] - 1)
      split_smallest(list, size, ranks_[r], scratch.keys);

    double* d = scratch.distance.reserve(n);
    const int exponent = exponent_of<T>(list[request_.k - 1].d2);
    const double unit = std::ldexp(1.0, exponent);
    for (int j = 0; j < n; ++j)
      d[j] = is_square<T>(list[j].d2) ? std::sqrt(list[j].d2) * unit : distance_of<T>(list[j].d2, exponent);

    const LidTerms<double> terms = lid_terms(static_cast<Estimator>(request_.estimator), d, request_.k);
    static_cast<Real*>(out_.lid)[i] = static_cast<Real>(terms.lid);
    out_.degenerate[i] = terms.degenerate;
    for (int t = 0; t < request_.track_count; ++t) {
      const Track& track = request_.tracks[t];
      const auto tracked = lid_terms(static_cast<Estimator>(track.estimator), d, track.k);
      static_cast<Real*>(out_.tracked)[t * problem_.x.rows + i] = static_cast<Real>(tracked.lid);
    }
    if (out_.grad) gradient(search, i, list, terms, exponent, scratch);
  }

 private:
  void gradient(const Search<T>& search, int64_t i, const Neighbour* list, const LidTerms<double>& terms, int exponent,
                LidScratch& scratch) const {
    Real* grad = static_cast<Real*>(out_.grad) + i * problem_.columns;
    if (terms.degenerate || std::isnan(terms.lid)) {
      std::fill_n(grad, problem_.columns, terms.degenerate ? Real(0) : std::numeric_limits<Real>::quiet_NaN());
      return;
    }
    const double* d = scratch.distance.get();
    const auto neighbour = [&](int j) { return search.reference(list[j].index); };
    double* exact = scratch.weight.reserve(2 * request_.k);
    double largest = 0, smallest = std::numeric_limits<double>::infinity();
    for (int j = 0; j < request_.k; ++j) {
      exact[j] = d[j] > 0 ? lid_weight(terms, request_.k, j, d[j]) / d[j] : 0;
      const double size = std::fabs(exact[j]);
      if (size > 0) largest = std::max(largest, size), smallest = std::min(smallest, size);
    }
    if (!(largest <= smallest * kWeightRange<Real>) || std::isinf(largest) || std::abs(exponent) > kDistanceRange<Real>) {
      for (int j = 0; j < request_.k; ++j) exact[j] = lid_weight(terms, request_.k, j, d[j]);
      gather_gradient_wide(search.query(i), neighbour, exact, d, std::ldexp(1.0, exponent), request_.k,
                           problem_.columns, grad);
      return;
    }
    // Weights w_j / d_j relative to a power of two near the largest, which goes into the factors instead: next to a tiny
    // d_j they would leave float's range.
    const int relative = largest > 0 ? std::ilogb(largest) : 0, total = 2 * exponent + relative;
    const double shrink = std::ldexp(1.0, -relative);
    Real* weight = reinterpret_cast<Real*>(exact + request_.k);
    for (int j = 0; j < request_.k; ++j) weight[j] = static_cast<Real>(exact[j] * shrink);
    const int third = total / 3;
    const Real factor[3] = {static_cast<Real>(std::ldexp(1.0, third)), static_cast<Real>(std::ldexp(1.0, third)),
                            static_cast<Real>(std::ldexp(1.0, total - 2 * third))};
    gather_gradient(search.query(i), neighbour, weight, request_.k, problem_.columns, factor, grad);
  }

  const Problem& problem_;
  const LidRequest& request_;
  const LidOutput& out_;
  Buffer<int> ranks_;
  int rank_count_;
};

template <class T>
void lid(const Problem& problem, const LidRequest& request, const LidOutput& out, Control& control) {
  Search<T> search(problem, control);
  const LidRow<T> row(problem, request, out);
  search.template run<LidScratch>(
      [&](int64_t i, Neighbour* list, int n, LidScratch& scratch) { row(search, i, list, n, scratch); });
}

}  // namespace LDREG_ISA
}  // namespace ldreg
