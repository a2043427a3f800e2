// Which references may be among a query's k nearest: the bounds, and the compaction of a list by a lower threshold.
//
// Contract: with packed rows x^, y^ a tile gives key = |y^|^2 - 2 x^.y^, and q = |x^|^2 + key is off by at most
// E = gamma (|x^|^2 + |y^|^2) from |x^ - y^|^2, which is within r_x + r_y of the true distance (r = residual). Hence
//   lower bound  d >= sqrt(q - E) - r_x - r_y        upper bound  d <= sqrt(q + E) + r_x + r_y.
// T, the upper bound of the k-th smallest key so far, bounds the k-th distance; a reference whose lower bound exceeds T is
// no neighbour. So every neighbour is among the candidates: the certificate holds by construction. What can fail is the
// room for candidates; such rows are listed in s.failed and get every pair (direct.h). A threshold only falls, and within
// a step it is fixed, so that the set of candidates is the same on every run; only their order is not.
// precision="fast": no error bounds, and kFastExtra candidates more than k.
#pragma once

#include <limits>

#include "operands.h"

namespace ldreg::cuda {

constexpr int kNever = 0x7fffffff;     // key of what is no candidate
constexpr float kAdmitAll = 1e36f;     // limit of a row without a threshold: admits every reference that is finite
// Limit of a row that failed: no comparison with it holds, whatever the lower bound is, -Inf included.
constexpr float kAdmitNone = std::numeric_limits<float>::quiet_NaN();
constexpr float kTiny = 1e-30f;        // products below 2^-126 vanish
constexpr int kFastExtra = 16;

// What the test of a pair needs from one side of a tile: as a reference (bias, residual) and as a query (limit, reach).
//   passes:  bias_j - 2 x^.y^ - residual_j * reach_i <= limit_i
struct Side {
  float norm, bias, residual, limit, reach;
};

__device__ inline float slack_of(const Arguments& a, float norm, float residual) {
  return a.plan.gamma * norm + residual * residual;
}

// The smallest key t that at least `wanted` of keys[0..n) do not exceed, or any above it that at most `enough` do not:
// bisection, by one warp. Returns kNever if there are fewer.
__device__ inline int split_keys(const int* keys, int n, int wanted, int enough) {
  int low = kNever, high = -kNever, known = 0;
  for (int c = lane_id(); c < n; c += kWarp) {
    const int key = keys[c];
    low = min(low, key);
    if (key < kNever) high = max(high, key), ++known;
  }
  low = __reduce_min_sync(kAllLanes, low) - 1, high = __reduce_max_sync(kAllLanes, high);
  known = __reduce_add_sync(kAllLanes, known);
  if (known < wanted) return kNever;
  while (known > enough && high - 1 > low) {
    const int middle = (low & high) + ((low ^ high) >> 1);  // the mean, without overflow
    int below = 0;
    for (int c = lane_id(); c < n; c += kWarp) below += keys[c] <= middle;
    below = __reduce_add_sync(kAllLanes, below);
    if (below >= wanted) high = middle, known = below;
    else low = middle;
  }
  return high;
}

// Lower the threshold of the query at `slot`, and keep in its list what passes. By one warp; keys: [cap] of its own.
__device__ __forceinline__ void compact_list(const Cursor& at, bool last, int slot, int* keys) {
  const Arguments& a = arguments();
  const int lane = lane_id();
  Candidate* list = a.s.list + int64_t(slot) * a.plan.cap;
  const int query = query_of(a, at.panel, slot), own = own_row(a.p, query);
  const int own_position = own < 0 ? -1 : int(own * a.plan.back % a.p.N);
  const float norm = a.s.x_norm[slot], residual = a.s.x_residual[slot];
  // The first step has no threshold: it puts every reference at its place.
  const unsigned listed = at.step == 0 ? unsigned(smaller(Schedule(a).held(at) * kBlock, a.plan.cap)) : a.s.count[slot];
  const bool good = norm < kNotFinite && residual < kLost && listed <= unsigned(a.plan.cap);
  const int n = good ? int(listed) : 0;
  for (int c = lane; c < n; c += kWarp) {
    const Candidate item = list[c];
    keys[c] = item.position == own_position ? kNever : item.key;
  }
  __syncwarp();

  const int wanted = a.p.exact ? a.p.wanted : smaller(a.p.wanted + kFastExtra, a.plan.cap);
  const int t = split_keys(keys, n, wanted, wanted + wanted / 16);
  float limit = kAdmitAll, reach = 0;
  if (t < kNever && a.p.exact) {
    // The largest error among the references counted, for the upper bound of the k-th distance.
    float slack = 0, width = 0;
    for (int c = lane; c < n; c += kWarp) {
      if (keys[c] > t) continue;
      const int j = list[c].position;
      slack = fmaxf(slack, slack_of(a, a.s.y_norm[j], a.s.y_residual[j]));
      width = fmaxf(width, a.s.y_residual[j]);
    }
    slack = warp_max(slack), width = warp_max(width);
    const float q = norm * (1 + a.plan.gamma) + from_sortable(t) + slack + kTiny;
    const float far = sqrtf(fmaxf(q, 0.0f)) * (1 + 1e-6f) + residual + width + residual;
    limit = far * far * (1 + 1e-6f) - norm * (1 - a.plan.gamma) + kTiny;
    reach = 2 * far;
  } else if (t < kNever) {
    limit = from_sortable(t);
  }

  int kept = 0;
  for (int f = 0; f < n; f += kWarp) {
    const int c = f + lane;
    Candidate item{kNever, 0};
    bool passes = false;
    if (c < n && keys[c] < kNever) {
      item = list[c];
      float lower = from_sortable(item.key);
      if (a.p.exact) {
        const float r = a.s.y_residual[item.position];
        lower -= slack_of(a, a.s.y_norm[item.position], r) + r * reach;
      }
      passes = lower <= limit;
    }
    const unsigned mask = __ballot_sync(kAllLanes, passes);
    __syncwarp();  // everyone has read: what is before f + 32 may be overwritten
    if (passes) list[kept + __popc(mask & ((1u << lane) - 1))] = item;
    kept += __popc(mask);
  }
  bool failed = !good;
  if (last) failed |= kept < a.p.wanted;
  if (lane != 0) return;
  if (last && failed) a.s.failed[atomicAdd(a.s.state + kFailed, 1u)] = query;
  a.s.count[slot] = failed ? a.plan.cap + 1 : kept;
  a.s.limit[slot] = failed ? kAdmitNone : limit;
  a.s.reach[slot] = failed ? 0.0f : reach;
}

}  // namespace ldreg::cuda
