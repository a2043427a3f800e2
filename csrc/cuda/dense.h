// The dense way: exact distances of many queries to all references, in register-blocked tiles, and selection from them.
// For rows whose lists had no room, for lists nearly as long as there are references, and for double.
//
// Contract: a tile is kBlock queries by kBlock references, d2 = sum_c (u (x_c - y_c))^2 by differences as in exact.h. A thread
// adds up kQueries x kReferences pairs: kSlab columns of a pair in one float32 sum, 16 of those in another, and these in
// double in the tile's buffer in global memory. So at worst, when all squares are equal and every addition rounds the same
// way, d2 is off by 1.1e-6, and integers come out exactly. Pairs whose squares would underflow are computed once more from
// larger differences. Double needs neither. Sums are in one order, whoever computes them.
//
// Operands are staged as Real, scaled, and transposed: column by column, groups of four rows swizzled by the column's group,
// so that both the scalar stores of a row's piece and the vector loads of the products touch every bank once.
#pragma once

#include <type_traits>

#include "direct.h"
#include "rounds.h"

namespace ldreg::cuda {

// The first kThreads threads of a block compute tiles.
template <class Real, int kThreads_>
struct DenseShape {
  static constexpr int kThreads = kThreads_, kAcross = 16, kDown = kThreads / kAcross;
  static constexpr int kQueries = kBlock / kDown, kReferences = kBlock / kAcross;  // of a thread
  static constexpr int kRows = 2 * kBlock, kSlab = 128 / int(sizeof(Real)), kGroups = kSlab / 4;
  static constexpr int kPieces = kRows * kGroups / kThreads;  // of four columns, that a thread stages of a slab
  static constexpr int kSlabBytes = kRows * kSlab * int(sizeof(Real));
  static constexpr int kMost = 16;  // slabs in float32
  // With 512 threads in the kernel for Hopper, registers are for one sum of a pair only.
  static constexpr bool kParked = kThreads > 256;
  static_assert(kPieces <= kGroups && kQueries % 4 == 0);

  struct Shared {
    Real slab[2][kSlab][kRows];
    // Sums of slabs, each its thread's own.
    Four<Real> parked[kParked ? kQueries * kReferences / 4 : 1][kParked ? kThreads : 1];
    const void* row[kRows];  // of x, then of y
    int number[kRows];       // which rows these are
    Real unit;
    int underflow;   // whether some pair's squares may have
  };

  static constexpr int kBytes = int(sizeof(Shared));

  // Threads of a warp stand 4 x 8: a vector load of theirs is 128 bytes of shared memory. Their rows are four by four,
  // 4 kDown or 4 kAcross apart.
  static __device__ int query() { return 4 * (thread_id() / (4 * kAcross) * 4 + lane_id() / 8); }
  static __device__ int reference() { return 4 * (warp_id() % (kAcross / 8) * 8 + lane_id() % 8); }
};

// What a thread does in every slab, worked out once: indices into a slab's rows, columns and numbers.
struct DensePlace {
  int x, y;        // of its first query and reference, before they are swizzled
  int row, column;  // that it stages first, a piece of four columns
  int staged;       // where that goes, swizzled

  template <class Shape>
  static __device__ __forceinline__ DensePlace here() {
    const unsigned thread = thread_id(), row = thread / Shape::kGroups, column = thread % Shape::kGroups * 4;
    return {Shape::query(), kBlock + Shape::reference(), int(row), int(column), int(column * Shape::kRows + (row ^ column))};
  }
};

// The tile's distances in a buffer: the first pair's, and how far apart two queries are.
struct DenseBuffer {
  double* data;
  int64_t pitch;
};

template <class T, class Shape>
struct DenseTile {
  using Real = RealOf<T>;
  using Shared = typename Shape::Shared;
  static constexpr int kQueries = Shape::kQueries, kReferences = Shape::kReferences;
  static constexpr bool kFloat = sizeof(Real) == 4;

  static __device__ Shared& shared() { return *shared_at<Shared>(kControlBytes); }

  // Four columns of one row, the p-th piece of this thread: its group is the same for all pieces, rows are kStep apart, so
  // that swizzled they still are. From global memory ...
  static constexpr int kStep = Shape::kThreads / Shape::kGroups;
  static_assert(kStep % 32 == 0);

  static __device__ __forceinline__ void fetch(const DensePlace& at, int p, int from, Real (&piece)[4]) {
    const Arguments& a = arguments();
    load4(static_cast<const T*>(shared().row[at.row + p * kStep]), from + at.column, a.p.D, a.p.aligned, piece);
  }

  // ... and to shared memory.
  static __device__ __forceinline__ void put(const DensePlace& at, int p, int buffer, const Real (&piece)[4]) {
    const Real unit = shared().unit;
    Real* to = shared().slab[buffer][0] + at.staged + p * kStep;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i * Shape::kRows] = piece[i] * unit;
  }

  // sum += squares of four columns, those of `group`. kLifted: of 2^100 times the differences.
  template <bool kLifted>
  static __device__ __forceinline__ void add(const DensePlace& at, int buffer, int group, Real (&sum)[kQueries][kReferences]) {
    const Real* column = shared().slab[buffer][4 * group];
    const Real* x_at = column + (at.x ^ 4 * group);
    const Real* y_at = column + (at.y ^ 4 * group);
#pragma unroll(kFloat ? 4 : 1)
    for (int c = 0; c < 4; ++c) {
      Four<Real> x[kQueries / 4], y[kReferences / 4];
#pragma unroll
      for (int i = 0; i < kQueries / 4; ++i)
        x[i] = *reinterpret_cast<const Four<Real>*>(x_at + c * Shape::kRows + i * 4 * Shape::kDown);
#pragma unroll
      for (int i = 0; i < kReferences / 4; ++i)
        y[i] = *reinterpret_cast<const Four<Real>*>(y_at + c * Shape::kRows + i * 4 * Shape::kAcross);
#pragma unroll
      for (int q = 0; q < kQueries; ++q)
#pragma unroll
        for (int r = 0; r < kReferences; ++r) {
          Real difference = x[q / 4].v[q % 4] - y[r / 4].v[r % 4];
          if (kLifted) difference *= Real(kLift);
          sum[q][r] += difference * difference;
        }
    }
  }

  // Sums of pairs, four references of a query at a time: in registers, or in shared memory.
  struct InRegisters {
    Real v[kQueries][kReferences] = {};
    __device__ Four<Real> get(int q, int r) const { return {v[q][r], v[q][r + 1], v[q][r + 2], v[q][r + 3]}; }
    __device__ void put(int q, int r, const Four<Real>& four) {
      v[q][r] = four.v[0], v[q][r + 1] = four.v[1], v[q][r + 2] = four.v[2], v[q][r + 3] = four.v[3];
    }
  };
  struct Parked {
    __device__ Parked() {
#pragma unroll
      for (int i = 0; i < kQueries * kReferences / 4; ++i) shared().parked[i][thread_id()] = {};
    }
    static __device__ Four<Real>& at(int q, int r) { return shared().parked[(q * kReferences + r) / 4][thread_id()]; }
    __device__ Four<Real> get(int q, int r) const { return at(q, r); }
    __device__ void put(int q, int r, const Four<Real>& four) { at(q, r) = four; }
  };
  using OfSlabs = std::conditional_t<Shape::kParked, Parked, InRegisters>;

  // A slab's sums join `whole`, and are 0 again.
  static __device__ __forceinline__ void join(Real (&sum)[kQueries][kReferences], OfSlabs& whole) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q)
#pragma unroll
      for (int r = 0; r < kReferences; r += 4) {
        Four<Real> four = whole.get(q, r);
#pragma unroll
        for (int i = 0; i < 4; ++i) four.v[i] += sum[q][r + i], sum[q][r + i] = 0;
        whole.put(q, r, four);
      }
  }

  // Sums to the buffer, where `more` are from columns before; they are 0 again. A pair whose squares may have underflowed is
  // left at -0 by the last columns of the first time; the second time adds to those alone, below 0.
  template <bool kLifted, class Sums>
  static __device__ __forceinline__ void flush(Sums& sums, bool more, bool last, const DenseBuffer& to) {
    bool underflow = false;
#pragma unroll
    for (int q = 0; q < kQueries; ++q)
#pragma unroll
      for (int r = 0; r < kReferences; r += 4) {
        const int row = Shape::query() + q / 4 * 4 * Shape::kDown + q % 4;
        const int column = Shape::reference() + r / 4 * 4 * Shape::kAcross;
        Four<double>& pairs = *global(reinterpret_cast<Four<double>*>(to.data + row * to.pitch + column));
        Four<double> now = {};
        if (more || kLifted) now = pairs;
        const Four<Real> four = sums.get(q, r);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (kLifted) {
            if (__double_as_longlong(now.v[i]) < 0) now.v[i] -= double(four.v[i]) * (1 / (kLift * kLift));
            continue;
          }
          now.v[i] += double(four.v[i]);
          if (kFloat && last && now.v[i] < 1e-30) now.v[i] = -0.0, underflow |= !is_own(row, column + i);
        }
        pairs = now;
        sums.put(q, r, {});
      }
    if (underflow) shared().underflow = 1;
  }

  static __device__ bool is_own(int row, int column) {
    return own_row(arguments().p, shared().number[row]) == shared().number[kBlock + column];
  }

  template <bool kLifted>
  static __device__ __forceinline__ void product(const DenseBuffer& to) {
    const Arguments& a = arguments();
    const int slabs = (a.p.D + Shape::kSlab - 1) / Shape::kSlab;
    const DensePlace at = DensePlace::here<Shape>();
    InRegisters sum;
    [[maybe_unused]] std::conditional_t<kFloat, OfSlabs, int> whole{};  // doubles are added up as they are
    for (int p = 0; p < Shape::kPieces; ++p) {
      Real piece[4];
      fetch(at, p, 0, piece);
      put(at, p, 0, piece);
    }
    sync();
#pragma unroll 1
    for (int s = 0; s < slabs; ++s) {
#pragma unroll 1
      for (int group = 0; group < Shape::kGroups; ++group) {
        // The next slab comes while this one is multiplied, a piece at a time.
        const bool staging = group < Shape::kPieces && s + 1 < slabs;
        Real piece[4];
        if (staging) fetch(at, group, (s + 1) * Shape::kSlab, piece);
        add<kLifted>(at, s % 2, group, sum.v);
        if (staging) put(at, group, (s + 1) % 2, piece);
      }
      const bool last = s + 1 == slabs;
      if constexpr (kFloat) {
        join(sum.v, whole);
        if (last || s % Shape::kMost == Shape::kMost - 1) flush<kLifted>(whole, s >= Shape::kMost, last, to);
      } else if (last) {
        flush<kLifted>(sum, false, true, to);
      }
      sync();  // the slab has been read, and the next one is there
    }
  }

  static __device__ void sync() { named_barrier(15, Shape::kThreads); }

  // The job-th tile of a round. By the whole block.
  static __device__ __forceinline__ void run(const Rounds& rounds, const RoundAt& at, int job) {
    if (thread_id() >= Shape::kThreads) return;
    const Arguments& a = arguments();
    const int across = rounds.across(at.round), down = job / across * kBlock, right = job % across * kBlock;
    for (int i = thread_id(); i < kBlock; i += Shape::kThreads) {
      const int number = smaller(rounds.top(at.round) + down + i, rounds.bottom(at.round) - 1);
      const int query = a.plan.tiles ? a.s.failed[number] : number;
      const int reference = smaller(rounds.first(at.round) + right + i, a.p.N - 1);
      shared().number[i] = query, shared().row[i] = row_of<T>(a.p.x, a.p.x_stride, query);
      shared().number[kBlock + i] = reference, shared().row[kBlock + i] = row_of<T>(a.p.y, a.p.y_stride, reference);
    }
    if (thread_id() == 0) {
      const auto largest = *reinterpret_cast<const unsigned long long*>(a.s.state + kLargestLow);
      shared().unit = Real(unit_of(largest, Real())), shared().underflow = 0;
    }
    sync();
    const int64_t pitch = a.plan.dense_references;
    const DenseBuffer to{a.s.pairs + (at.round % 2 * a.plan.dense_rows + down) * pitch + right, pitch};
    product<false>(to);
    if constexpr (kFloat) {
      if (shared().underflow) product<true>(to);
    }
  }
};

}  // namespace ldreg::cuda
