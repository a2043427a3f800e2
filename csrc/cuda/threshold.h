// Which references may be among a query's k nearest: the bounds, and the compaction of a list by a lower threshold.
//
// Contract: with packed rows x^, y^ a tile gives key = |y^|^2 - 2 x^.y^, and q = |x^|^2 + key is off by at most
// E = gamma (|x^|^2 + |y^|^2) from |x^ - y^|^2, which is within r_x + r_y of the true distance (r = residual). Hence
//   lower bound  d >= sqrt(q - E) - r_x - r_y        upper bound  d <= sqrt(q + E) + r_x + r_y.
// T, the upper bound of the k-th smallest key so far, bounds the k-th distance; a reference whose lower bound exceeds T is
// no neighbour. So every neighbour is among the candidates: the certificate holds by construction. What can fail is the
// room for candidates; such rows are listed in s.failed and get every pair (dense.h). A threshold only falls, and within
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

// What the test of a pair needs of a row as a reference and as a query.
struct alignas(8) AsReference {
  float bias, residual;
};
struct alignas(8) AsQuery {
  float limit, reach;
};

__device__ inline bool passes(AsReference j, AsQuery i, float product) {
  return minus_twice(j.bias, product) - j.residual * i.reach <= i.limit;
}
__device__ inline bool passes(AsQuery i, AsReference j, float product) { return passes(j, i, product); }

__device__ inline float slack_of(const Arguments& a, Packed y) { return a.plan.gamma * y.norm + y.residual * y.residual; }

// Of shared memory, to compact a list: key, position, slack and residual of each candidate.
LDREG_HD int compact_bytes(int cap) { return cap * 4 * int(sizeof(int)); }

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

// Lower the threshold of the query at `slot`, and keep in its list what passes. By one warp; room: compact_bytes() of its
// own. The list is read once, four candidates a lane at a time, and what packing knows of them with it.
__device__ __forceinline__ void compact_list(const Cursor& at, bool last, int slot, char* room) {
  const Arguments& a = arguments();
  const int lane = lane_id();
  Candidate* list = a.s.list + int64_t(slot) * a.plan.cap;
  const int query = query_of(a, at.panel, slot), own = own_row(a.p, query);
  const int own_position = own < 0 ? -1 : int(own * a.plan.back % a.p.N);
  const auto [norm, residual] = a.s.x_packed[slot];
  int* keys = reinterpret_cast<int*>(room);
  int* positions = keys + a.plan.cap;
  float* slacks = reinterpret_cast<float*>(positions + a.plan.cap);
  float* residuals = slacks + a.plan.cap;
  // The first step has no threshold: it puts every reference at its place.
  const unsigned listed = at.step == 0 ? unsigned(smaller(Schedule(a).held(at) * kBlock, a.plan.cap)) : a.s.count[slot];
  const bool good = norm < kNotFinite && residual < kLost && listed <= unsigned(a.plan.cap);
  const int n = good ? int(listed) : 0;
  constexpr int kTogether = 4;
  for (int first = lane; first < n; first += kTogether * kWarp) {
    Candidate item[kTogether];
    Packed y[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int c = first + i * kWarp;
      item[i] = {kNever, 0};
      if (c < n) item[i] = *global(list + c);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      y[i] = {0, 0};
      if (item[i].position == own_position) item[i].key = kNever;
      if (a.p.exact && item[i].key < kNever) y[i] = *global(a.s.y_packed + item[i].position);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int c = first + i * kWarp;
      if (c >= n) break;
      keys[c] = item[i].key, positions[c] = item[i].position;
      slacks[c] = slack_of(a, y[i]), residuals[c] = y[i].residual;
    }
  }
  __syncwarp();

  const int wanted = a.p.exact ? a.p.wanted : smaller(a.p.wanted + kFastExtra, a.plan.cap);
  const int t = split_keys(keys, n, wanted, wanted + wanted / 16);
  float limit = kAdmitAll, reach = 0;
  if (t < kNever && a.p.exact) {
    // The largest error among the references counted, for the upper bound of the k-th distance.
    float slack = 0, width = 0;
    for (int c = lane; c < n; c += kWarp) {
      if (keys[c] <= t) slack = fmaxf(slack, slacks[c]), width = fmaxf(width, residuals[c]);
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
    const int key = c < n ? keys[c] : kNever;
    float lower = from_sortable(key);
    if (a.p.exact && key < kNever) lower -= slacks[c] + residuals[c] * reach;
    const bool stays = key < kNever && lower <= limit;
    const unsigned mask = __ballot_sync(kAllLanes, stays);
    if (stays) list[kept + __popc(mask & ((1u << lane) - 1))] = {key, positions[c]};
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
