// A team's ring: rows of references on their way from global to shared memory while others are worked on.
//
// Contract: a turn is up to kRows references of the task's list, or as many columns of them as the team holds at once
// (`wide`), chunk after chunk. `start` sends for the first turns, `wait` returns when the next one is there, `pass` gives its
// place to a later one. The features arrive as they are in memory, and are the same whichever way they came:
//   bulk   one thread has the copy engine bring each row, where it exists and rows begin and end at multiples of 16 bytes
//   else   every thread copies its own columns, asynchronously where they lie so that it can
// A turn's mbarrier `full` opens when all of it has landed. There is no `empty`: the barrier at which the team exchanges what
// it found in a turn is behind everybody's last look at it, and `pass` comes after that barrier.
#pragma once

#include "hopper.h"
#include "team.h"

namespace ldreg::cuda {

// Columns a thread holds of a row, four by four at a stride of four times the team's threads; and how many rows at a time,
// so that registers hold their differences.
LDREG_HD int row_values(int D) { return D <= 512 ? 8 : 16; }
constexpr int kDifferences = 32;  // of a thread, in registers
LDREG_HD int rows_together(int D) { return kDifferences / row_values(D); }
LDREG_HD int row_team_shift(int D) { return D <= 1024 ? 6 : 7; }
LDREG_HD int columns_at_once(int D) { return row_values(D) << row_team_shift(D); }
LDREG_HD int row_bytes(int D, int item) { return (smaller(columns_at_once(D), D) * item + 127) / 128 * 128; }

constexpr int kMostTurns = 8;              // in flight, of a team
constexpr int kRingBytes = 96 << 10;       // ... of all teams together: four times what L2's latency asks for

// Four features of one's own columns, `left` of them in the row; 0 in place of the others.
template <class T>
__device__ __forceinline__ void copy_four(T* to, const T* from, int left, bool aligned) {
  if (aligned) return copy_async<4 * sizeof(T)>(to, from);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= left) to[i] = T{};
    else if constexpr (sizeof(T) == 4) copy_async<4>(to + i, from + i);
    else to[i] = *global(from + i);
  }
}

template <class T, bool kBulk, int kValues>
class Ring {
 public:
  static constexpr int kRows = kDifferences / kValues;
  using Group = Four<T>;

  __device__ explicit Ring(const TeamShared<RealOf<T>>& shared) : shared_(shared) {}

  // By the team, before its first query and after its last.
  __device__ void open() const {
    const Team team = this_team();
    if (team.thread == 0) {
#pragma unroll 1
      for (int i = 0; i < arguments().plan.turns; ++i) mbarrier_init(full(opaque(i)), bulk() ? 1 : team.threads);
      if (kBulk) mbarrier_fence_init();
      shared_.words()[kPassed] = 0;
    }
    // What this memory held before was written by ordinary stores, and copies are going to write over it.
    if (kBulk) fence_proxy_async();
    team.sync();
  }
  __device__ void close() const {
    if (this_team().thread != 0) return;
#pragma unroll 1
    for (int i = 0; i < arguments().plan.turns; ++i) mbarrier_invalidate(full(opaque(i)));
  }

  // The list's indices are there for everyone.
  __device__ void start() {
    const Plan& plan = arguments().plan;
    const int passed = shared_.words()[kPassed];
    at_ = passed % plan.turns, parity_ = passed / plan.turns % 2;
#pragma unroll 1
    for (int turn = 0; turn < plan.turns; ++turn) fill((at_ + turn) % plan.turns, turn);
  }
  __device__ void wait() const { mbarrier_wait(full(at_), parity_); }
  // Row t of the turn that is there.
  __device__ const T* row(int t) const { return slot(at_, t); }

  // The list's turn `turn` is done with: behind a barrier of the team after everyone's last look at it. No proxy fence: what was read has arrived, as it went
  // into what the barrier exchanged, and a copy issued after that cannot change it. (Fences order ordinary writes before
  // copies.)
  __device__ __forceinline__ void pass(int turn) {
    fill(at_, turn + arguments().plan.turns);
    if (++at_ == arguments().plan.turns) at_ = 0, parity_ ^= 1;
  }
  // After the last turn; the next barrier shows it to the team.
  __device__ void finish() const {
    if (this_team().thread == 0) shared_.words()[kPassed] += turns();
  }

 private:
  static constexpr int kPassed = 0;  // of TeamShared::words: turns since `open`

  static __device__ bool bulk() { return kBulk && arguments().p.bulk; }
  __device__ int turns() const { return ceil_div(shared_.task().n, kRows) * arguments().plan.chunks; }
  __device__ uint64_t* full(int place) const { return shared_.barriers() + place; }
  __device__ T* slot(int place, int t) const {
    const Plan& plan = arguments().plan;
    return shared_at<T>(shared_.offset + plan.ring_at + (place * kRows + t) * plan.row_bytes);
  }

  // Sends for a turn of the list, if there is one.
  __device__ __forceinline__ void fill(int place, int turn) {
    if (turn >= turns()) return;
    const Arguments& a = arguments();
    const Team team = this_team();
    const bool by_engine = bulk();
    if (by_engine && team.warp != 0) return;
    const int chunks = a.plan.chunks, wide = kValues * team.threads;
    const int first = (chunks == 1 ? turn : turn / chunks) * kRows, from = chunks == 1 ? 0 : turn % chunks * wide;
    const int rows = smaller(kRows, shared_.task().n - first), columns = smaller(wide, a.p.D - from);
    const auto reference = [&](int t) {
      return static_cast<const T*>(a.p.y) + shared_.list()[first + t].index * a.p.y_stride + from;
    };
    if (by_engine) {
      if (elect_one()) {
        mbarrier_arrive_expect_tx(full(place), rows * columns * int(sizeof(T)));
#pragma unroll 1
        for (int t = 0; t < rows; ++t) copy_bulk(full(place), slot(place, t), reference(t), columns * int(sizeof(T)));
      }
      return;
    }
#pragma unroll 1
    for (int t = 0; t < rows; ++t)
#pragma unroll 1
      for (int c = 4 * team.thread; c < columns; c += 4 * team.threads)
        copy_four(slot(place, t) + c, reference(t) + c, columns - c, a.p.aligned);
    mbarrier_arrive_when_copied(full(place));
  }

  const TeamShared<RealOf<T>>& shared_;
  int at_, parity_;  // the place of the turn that is waited for
};

}  // namespace ldreg::cuda
