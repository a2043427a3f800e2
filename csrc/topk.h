// Bounded selection for host and device: the order of neighbours, partial ordering of a list, a bounded max-heap.
//
// The order is (distance, index), so the k smallest are one set whatever order they arrive in: ties go to the lower index
// on every backend. Nothing here allocates. Distances are squared and in double: exact sums of either float or double
// inputs fit, at any scale.
#pragma once

#include "lid_math.h"

namespace ldreg {
inline namespace LDREG_ISA {

struct Neighbour {
  double d2;  // squared distance; +inf for a pair that NaN or Inf touches
  int index;
};

LDREG_HD bool before(const Neighbour& a, const Neighbour& b) {
  return a.d2 < b.d2 || (a.d2 == b.d2 && a.index < b.index);
}

LDREG_HD void exchange(Neighbour& a, Neighbour& b) {
  const Neighbour t = a;
  a = b;
  b = t;
}

// Afterwards the k smallest of list[0..n) are in front and the k-th smallest is list[k-1] (quickselect, 1 <= k <= n).
LDREG_HD void select_smallest(Neighbour* list, int n, int k) {
  int lo = 0, hi = n - 1;
  const int target = k - 1;
  while (lo < hi) {
    const int mid = lo + (hi - lo) / 2;  // median of three as the pivot, parked at hi
    if (before(list[mid], list[lo])) exchange(list[mid], list[lo]);
    if (before(list[hi], list[lo])) exchange(list[hi], list[lo]);
    if (before(list[mid], list[hi])) exchange(list[mid], list[hi]);
    const Neighbour pivot = list[hi];
    int store = lo;
    for (int i = lo; i < hi; ++i) {
      // Branch-free: on random input a branch here is wrong every other time.
      const Neighbour item = list[i];
      const bool smaller = before(item, pivot);
      list[i] = list[store];
      list[store] = item;
      store += smaller;
    }
    exchange(list[store], list[hi]);
    if (store == target) return;
    if (store < target) lo = store + 1;
    else hi = store - 1;
  }
}

// list[0..n) obeys the max-heap property except perhaps at `root`: restore it.
LDREG_HD void sift_down(Neighbour* list, int n, int root) {
  const Neighbour item = list[root];
  for (int child = 2 * root + 1; child < n; child = 2 * root + 1) {
    if (child + 1 < n && before(list[child], list[child + 1])) ++child;
    if (!before(item, list[child])) break;
    list[root] = list[child];
    root = child;
  }
  list[root] = item;
}

LDREG_HD void make_heap(Neighbour* list, int n) {
  for (int root = n / 2 - 1; root >= 0; --root) sift_down(list, n, root);
}

// Keep the k smallest seen so far; list[0] is the largest kept once *n == k. Returns whether `item` was taken.
LDREG_HD bool keep_smallest(Neighbour* list, int* n, int k, const Neighbour& item) {
  if (*n < k) {
    list[(*n)++] = item;
    if (*n == k) make_heap(list, k);
    return true;
  }
  if (!before(item, list[0])) return false;
  list[0] = item;
  sift_down(list, k, 0);
  return true;
}

}  // namespace LDREG_ISA
}  // namespace ldreg
