// From candidates to neighbours: exact distances for no more candidates than needed, a group of queries at a time.
//
// First as many candidates as neighbours are wanted, by lower bound; the largest of their distances bounds the k-th one.
// Then, of the rest, only those whose lower bound does not exceed it (the multi-step search of Seidl & Kriegel, 1998, in
// two steps instead of one per candidate). When a group's lists are long enough to want most references several times,
// each reference is read once and meets all queries of the group that want it.
#pragma once

#include "candidates.h"
#include "exact.h"
#include "select.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int kGroup = 48;                   // queries evaluated together, at most
constexpr int64_t kGroupBytes = 384 << 10;   // of their rows, which stay in L2 while the references pass

// One query on its way from candidates to neighbours.
struct Evaluation {
  int64_t query;
  int count;               // candidates, then neighbours
  int from, to;            // the candidates being evaluated
  Buffer<float> lower;     // [count] lower bounds in the tile's unit
  Buffer<int> index;       // [count]
  Buffer<Neighbour> list;  // [to] exact
};

template <class T>
class Evaluator {
 public:
  // The tile's unit is 2^`unit` times the features' own; bounds are trusted only if `exact`.
  Evaluator(const Features<T>& x, const Features<T>& y, int64_t columns, int wanted, int unit, bool exact)
      : x_(x), y_(y), columns_(columns), wanted_(wanted), unit_(unit), exact_(exact) {}

  // Afterwards each list holds the `wanted` nearest candidates (all, if there are fewer) and `count` says how many.
  void operator()(Evaluation* group, int size) {
    for (Evaluation* e = group; e < group + size; ++e) {
      e->from = 0, e->to = e->count;
      if (exact_ && e->count > wanted_)
        e->to = split(*e, at_least(e->lower.get(), e->count, wanted_));
    }
    distances(group, size);
    for (Evaluation* e = group; e < group + size; ++e) {
      e->from = e->to;
      if (e->to == e->count) continue;
      double reach = 0;
      for (int c = 0; c < e->to; ++c) reach = std::max(reach, e->list[c].d2);
      // A lower bound carries a few roundings of float: hence the margin.
      e->to = split(*e, static_cast<float>(std::min(distance_of<T>(reach, unit_) * (1 + 1e-6), double(kNever))));
    }
    distances(group, size);
    for (Evaluation* e = group; e < group + size; ++e) {
      e->count = std::min(e->to, wanted_);
      if (e->to > wanted_) split_smallest(e->list.get(), e->to, wanted_, e->lower);
    }
  }

 private:
  struct Wanted {
    int query, entry;  // in the group, and in the query's list
  };

  // Candidates from e.from on with lower <= bound go to the front; returns where they end.
  static int split(Evaluation& e, float bound) {
    float* lower = e.lower.get();
    int* index = e.index.get();
    int end = e.from;
    for (int c = e.from; c < e.count; ++c) {
      const float l = lower[c];
      const int j = index[c];
      lower[c] = lower[end], index[c] = index[end];
      lower[end] = l, index[end] = j;
      end += l <= bound;
    }
    return end;
  }

  // list[from..to) of every query in the group.
  void distances(Evaluation* group, int size) {
    int64_t total = 0;
    for (int g = 0; g < size; ++g) total += group[g].to - group[g].from;
    if (total >= 2 * y_.rows()) return by_reference(group, size, total);
    for (int g = 0; g < size; ++g) range(group[g], group[g].from, group[g].to);
  }

  // The references one after the other, each with all queries that want it.
  void by_reference(Evaluation* group, int size, int64_t total) {
    int* end = ends_.reserve(y_.rows());
    Wanted* wanted = wanted_by_.reserve(total);
    std::fill_n(end, y_.rows(), 0);
    for (int g = 0; g < size; ++g)
      for (int c = group[g].from; c < group[g].to; ++c) ++end[group[g].index[c]];
    for (int64_t j = 0, at = 0; j < y_.rows(); ++j) at += end[j], end[j] = int(at) - end[j];  // where each begins
    for (int g = 0; g < size; ++g)
      for (int c = group[g].from; c < group[g].to; ++c) wanted[end[group[g].index[c]]++] = Wanted{g, c};  // and ends
    for (int64_t j = 0, at = 0; j < y_.rows(); at = end[j++]) {
      const T *own = y_.row(j), *rows[4];
      double d2[4];
      for (int64_t w = at; w < end[j]; w += 4) {
        for (int r = 0; r < 4; ++r) rows[r] = x_.row(group[wanted[std::min<int64_t>(w + r, end[j] - 1)].query].query);
        squared_distances(own, rows, columns_, d2);
        for (int r = 0; r < 4 && w + r < end[j]; ++r)
          group[wanted[w + r].query].list[wanted[w + r].entry] = Neighbour{d2[r], int(j)};
      }
    }
  }

  void range(Evaluation& e, int from, int to) {
    const int* index = e.index.get();
    const T *own = x_.row(e.query), *rows[4];
    double d2[4];
    for (int c = from; c < to; c += 4) {
      for (int r = 0; r < 4; ++r) rows[r] = y_.row(index[std::min(c + r, to - 1)]);
      squared_distances(own, rows, columns_, d2);
      for (int r = 0; r < 4 && c + r < to; ++r) e.list[c + r] = Neighbour{d2[r], index[c + r]};
    }
  }

  const Features<T>&x_, &y_;
  int64_t columns_;
  int wanted_;
  int unit_;
  bool exact_;
  Buffer<int> ends_;
  Buffer<Wanted> wanted_by_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
