// kNN on the CPU: the search, and a sink that sorts each row's neighbours and writes them out.
#pragma once

#include "search.h"

namespace ldreg {
inline namespace LDREG_ISA {

template <class T>
void knn(const Problem& problem, const KnnOutput& out, Control& control) {
  using Real = typename Compute<T>::Real;
  struct Scratch {};
  auto write = [&](int64_t i, Neighbour* list, int n, Scratch&) {
    std::sort(list, list + n, before);
    Real* distance = static_cast<Real*>(out.distances) + i * problem.k;
    int64_t* index = out.indices + i * problem.k;
    for (int j = 0; j < n; ++j) {
      distance[j] = list[j].d2 < std::numeric_limits<double>::infinity() ? static_cast<Real>(distance_of<T>(list[j].d2))
                                                                         : std::numeric_limits<Real>::quiet_NaN();
      index[j] = list[j].index;
    }
  };
  Search<T>(problem, control).template run<Scratch>(write);
}

}  // namespace LDREG_ISA
}  // namespace ldreg
