// A team: two or four warps that work on one query together, and the list of neighbours they keep in shared memory.
//
// Contract: `sync` is a barrier among the team's threads only, so that one team's latencies hide behind another's work.
// `sort` orders a list by (distance, index), the order of topk.h: short ones by counting what comes before each item, others
// by a bitonic network.
#pragma once

#include "load.h"
#include "schedule.h"

namespace ldreg::cuda {

struct Team {
  int id, thread, warp, lane, threads;
  __device__ int warps() const { return threads / kWarp; }
  __device__ void sync() const { named_barrier(1 + id, threads); }
};

__device__ inline Team this_team() {
  const int shift = arguments().plan.team_shift, thread = thread_id() & ((1 << shift) - 1);
  return {thread_id() >> shift, thread, thread / kWarp, lane_id(), 1 << shift};
}

LDREG_HD int power_above(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// What a team keeps in shared memory, for features of type Real: its task, scratch, rows of x, lists, and sums if asked
// for. Stages hand on this offset alone and read the rest where they need it: registers are short, and sums of it with
// constants, taken out of every loop, would fill them (opaque).
template <class Real>
struct TeamShared {
  struct Task {
    double unit;
    int queries, room, columns;  // rows of x and lists there are room for; entries of a list; features of a row, padded
    int query, n, power;         // at hand: its row, the length of its list, estimate.h
  };
  int offset;  // in the block's shared memory

  static constexpr int kScratch = 64, kFixedBytes = 1024;
  LDREG_HD static int padded(int D) { return (D + 4 * kWarp - 1) / (4 * kWarp) * (4 * kWarp); }
  LDREG_HD static int bytes(int queries, int room, int D, bool sums) {
    return kFixedBytes + queries * (padded(D) * int(sizeof(Real)) + room * int(sizeof(Neighbour))) +
           (sums ? padded(D) * int(sizeof(float)) : 0);
  }
  __device__ Task& task() const { return *shared_at<Task>(offset); }
  __device__ int* words() const { return shared_at<int>(offset + 128); }            // [32]
  __device__ double* scratch() const { return shared_at<double>(scratch_at()); }  // [kScratch]
  __device__ int scratch_at() const { return opaque(offset) + 256; }
  __device__ uint64_t* barriers() const { return shared_at<uint64_t>(opaque(offset) + 768); }  // [kMostTurns], ring.h
  __device__ int x_at(int query = 0) const {
    return opaque(offset) + kFixedBytes + query * task().columns * int(sizeof(Real));
  }
  __device__ int list_at(int query = 0) const {
    return x_at(task().queries) + query * task().room * int(sizeof(Neighbour));
  }
  __device__ Real* x(int query = 0) const { return shared_at<Real>(x_at(query)); }  // times the unit, 0 from column D on
  __device__ Neighbour* list(int query = 0) const { return shared_at<Neighbour>(list_at(query)); }
  __device__ float* sum() const { return shared_at<float>(list_at(task().queries)); }
};

// By the number of items before each, to the other half of the list's room and back.
__device__ __forceinline__ void sort_by_rank(int list_at, int n) {
  Neighbour* list = shared_at<Neighbour>(list_at);
  const int half = arguments().plan.room / 2;
#pragma unroll 1
  for (int i = this_team().thread; i < n; i += this_team().threads) {
    const Neighbour mine = list[i];
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < n; ++j) rank += before(list[j], mine);
    list[half + rank] = mine;
  }
  this_team().sync();
  for (int i = this_team().thread; i < n; i += this_team().threads) list[i] = list[half + i];
  this_team().sync();
}

constexpr int kRanked = 128;  // items up to which counting is faster: n reads a thread against 28 barriers

// list[0..n), no item twice, by ascending (distance, index); what is behind n in the list's room may be overwritten. Begins and ends with a barrier of the team.
__device__ __forceinline__ void sort(int list_at, int n) {
  Neighbour* list = shared_at<Neighbour>(list_at);
  const Team team = this_team();
  if (n <= smaller(kRanked, arguments().plan.room / 2)) {
    team.sync();
    return sort_by_rank(list_at, n);
  }
  const int power = power_above(n);
  for (int i = n + team.thread; i < power; i += team.threads) list[i] = {INFINITY, 0x7fffffff};
  team.sync();
  for (int size = 2; size <= power; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = team.thread; pair < power / 2; pair += team.threads) {
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
  for (int w = 0; w < team.warps(); ++w) one += scratch[2 * w], two += scratch[2 * w + 1];
  team.sync();
}

__device__ inline double team_max(const Team& team, double* scratch, double v) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v = fmax(v, __shfl_xor_sync(kAllLanes, v, lanes));
  if (team.lane == 0) scratch[team.warp] = v;
  team.sync();
  for (int w = 0; w < team.warps(); ++w) v = fmax(v, scratch[w]);
  team.sync();
  return v;
}

// Row `query` of x to shared memory, in the unit.
template <class T>
__device__ inline void load_query(const Arguments& a, int query, RealOf<T> unit, RealOf<T>* x) {
  const Team team = this_team();
  const T* row = static_cast<const T*>(a.p.x) + query * a.p.x_stride;
  for (int c = 4 * team.thread; c < TeamShared<RealOf<T>>::padded(a.p.D); c += 4 * team.threads) {
    RealOf<T> v[4];
    load4(row, c, a.p.D, a.p.aligned, v);
    for (int i = 0; i < 4; ++i) x[c + i] = v[i] * unit;
  }
}

}  // namespace ldreg::cuda
