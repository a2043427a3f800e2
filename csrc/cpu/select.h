// Selection by counting: bisect for a value that k of n floats do not exceed. A round is a few instructions per vector of
// entries, where quickselect mispredicts a branch or moves an entry for each; topk.h has the portable ones.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"
#include "../topk.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr float kNever = 1e30f;  // larger than any key: the tile's unit has entries near 1

// key[c..c+kLanes), with `filler` from n on (for counting: something no key reaches).
inline Floats block(const float* key, int c, int n, float filler) {
  if (c + kLanes <= n) return load(key + c);
  Floats v = {};
  v += filler;
  for (int l = 0; c + l < n; ++l) v[l] = key[c + l];
  return v;
}

// A value that at least k of n keys do not exceed, and hardly more than k: bisection by counting, which takes a few
// vector instructions a round where a selection would mispredict a branch a key.
inline float at_least(const float* key, int n, int k, int rounds = 16) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  Floats low = {}, high = {};
  low += infinity, high -= infinity;
  for (int c = 0; c < n; c += kLanes) {
    const Floats v = block(key, c, n, key[0]);
    low = v < low ? v : low, high = v > high ? v : high;
  }
  float lo = low[0], hi = high[0];
  for (int l = 1; l < kLanes; ++l) lo = std::min(lo, low[l]), hi = std::max(hi, high[l]);
  for (int round = 0; round < rounds; ++round) {
    const float mid = lo + (hi - lo) * 0.5f;
    if (!(lo < mid && mid < hi)) break;
    Ints below = {};
    for (int c = 0; c < n; c += kLanes) below -= block(key, c, n, infinity) <= mid;
    int count = 0;
    for (int l = 0; l < kLanes; ++l) count += below[l];
    if (count >= k) hi = mid;
    else lo = mid;
    if (count == k) break;
  }
  return hi;
}

// select_smallest (topk.h) for long lists: split at the bisected value, and leave to quickselect only what float keys
// cannot tell apart. `keys` is scratch.
inline void split_smallest(Neighbour* list, int n, int k, Buffer<float>& keys) {
  if (n >= 64 && k < n) {
    float* key = keys.reserve(n);
    for (int c = 0; c < n; ++c) key[c] = static_cast<float>(list[c].d2);
    const float bound = at_least(key, n, k, 40);
    int end = 0;
    for (int c = 0; c < n; ++c) {
      const Neighbour item = list[c];
      list[c] = list[end], list[end] = item;
      end += static_cast<float>(item.d2) <= bound;
    }
    if (end >= k) n = end;  // else: keys beyond float's range; nothing was decided
  }
  if (n > k) return select_smallest(list, n, k);
  int last = 0;
  for (int c = 1; c < n; ++c) last = before(list[last], list[c]) ? c : last;
  exchange(list[last], list[n - 1]);
}

}  // namespace LDREG_ISA
}  // namespace ldreg
