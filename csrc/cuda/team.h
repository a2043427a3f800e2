// A team: four warps that work on one query together, and the list of neighbours they keep in shared memory.
//
// Contract: `sync` is a barrier among the team's threads only, so that one team's latencies hide behind another's work.
// `sort` orders a list by (distance, index), the order of topk.h, by a bitonic network: it needs room for a power of two.
#pragma once

#include "load.h"
#include "schedule.h"

namespace ldreg::cuda {

struct Team {
  int id, thread, warp, lane;
  __device__ void sync() const { named_barrier(1 + id, kTeam); }
};

__device__ inline Team this_team() {
  return {int(threadIdx.x) / kTeam, int(threadIdx.x) % kTeam, warp_id() % (kTeam / kWarp), lane_id()};
}

LDREG_HD int power_above(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// What a team keeps in shared memory, for features of type Real. `queries` lists and rows of x; sums only if asked for.
template <class Real>
struct TeamShared {
  Neighbour* list;  // [queries][room]
  Real* x;          // [queries][columns], times the unit, 0 from column D on
  float* sum;       // [columns]
  double* scratch;  // [kScratch]
  int* count;       // [8]

  static constexpr int kScratch = 64, kFixedBytes = 1024;

  LDREG_HD static int columns(int D) { return (D + 4 * kWarp - 1) / (4 * kWarp) * (4 * kWarp); }
  LDREG_HD static int bytes(int queries, int room, int D, bool sums) {
    return queries * (room * int(sizeof(Neighbour)) + columns(D) * int(sizeof(Real))) +
           (sums ? columns(D) * int(sizeof(float)) : 0) + kFixedBytes;
  }
  __device__ TeamShared(char* memory, int queries, int room, int D) {
    list = reinterpret_cast<Neighbour*>(memory);
    scratch = reinterpret_cast<double*>(list + queries * room);
    count = reinterpret_cast<int*>(scratch + kScratch);
    x = reinterpret_cast<Real*>(memory + queries * room * sizeof(Neighbour) + kFixedBytes);
    sum = reinterpret_cast<float*>(x + queries * columns(D));
  }
};

// list[0..n) by ascending (distance, index); what is behind n, up to the next power of two, is overwritten.
static __device__ __noinline__ void sort(const Team& team, Neighbour* list, int n) {
  const int power = power_above(n);
  for (int i = n + team.thread; i < power; i += kTeam) list[i] = {INFINITY, 0x7fffffff};
  team.sync();
  for (int size = 2; size <= power; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = team.thread; pair < power / 2; pair += kTeam) {
        const int low = pair / stride * 2 * stride + pair % stride, high = low + stride;
        const bool ascending = (low & size) == 0;
        if (before(list[high], list[low]) == ascending) exchange(list[low], list[high]);
      }
      team.sync();
    }
  }
}

// Both sums over the team, to every thread.
__device__ inline void team_sum(const Team& team, double* scratch, double& one, double& two) {
  one = warp_sum(one), two = warp_sum(two);
  if (team.lane == 0) scratch[2 * team.warp] = one, scratch[2 * team.warp + 1] = two;
  team.sync();
  one = two = 0;
  for (int w = 0; w < kTeam / kWarp; ++w) one += scratch[2 * w], two += scratch[2 * w + 1];
  team.sync();
}

__device__ inline double team_max(const Team& team, double* scratch, double v) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v = fmax(v, __shfl_xor_sync(kAllLanes, v, lanes));
  if (team.lane == 0) scratch[team.warp] = v;
  team.sync();
  for (int w = 0; w < kTeam / kWarp; ++w) v = fmax(v, scratch[w]);
  team.sync();
  return v;
}

// Row `query` of x to shared memory, in the unit.
template <class T>
__device__ inline void load_query(const Arguments& a, const Team& team, int query, RealOf<T> unit, RealOf<T>* x) {
  const T* row = static_cast<const T*>(a.p.x) + query * a.p.x_stride;
  for (int c = 4 * team.thread; c < TeamShared<RealOf<T>>::columns(a.p.D); c += 4 * kTeam) {
    RealOf<T> v[4];
    load4(row, c, a.p.D, a.p.aligned, v);
    for (int i = 0; i < 4; ++i) x[c + i] = v[i] * unit;
  }
}

}  // namespace ldreg::cuda
