// What a launch is given: pointers and sizes, by value, in one struct. Written by plan.h, read by every stage.
//
// Contract: plain data, the same bytes on host and device. Rows of x are queries, rows of y references; both in any dtype
// the kernel was compiled for, columns contiguous. The workspace needs no initialisation but for `state`, whose words
// are 0 before a launch and 0 again after it.
#pragma once

#include <cuda_fp16.h>

#include "device.h"

namespace ldreg::cuda {

constexpr int kBlock = 128;        // rows of a block of queries or references: the tile's side
constexpr int kMostTracks = 64;    // LIDs estimated from one list, besides the first
constexpr int kLargestK = 1024;
constexpr int kLargestColumns = 8192;
constexpr int kLargestRows = 1 << 30;

// Of shared memory, before what the stages use: what the block knows of where it is, and the arguments.
constexpr int kControlBytes = 3072, kArgumentsAt = 1024;

enum class OwnKind : int { none, offset, map };

struct Problem {
  const void* x;  // [B, D]
  int64_t x_stride;
  const void* y;  // [N, D]
  int64_t y_stride;
  int B, N, D;
  OwnKind own;
  const int64_t* own_map;  // [B] row of y that a query is, or -1
  int64_t own_offset;
  int wanted;    // neighbours to find: the largest k asked for
  int drop;      // how many of the nearest are left out: 1 for the published convention, else 0
  bool exact;    // precision="exact"
  bool same;     // y is x, row for row
  bool aligned;  // rows begin at multiples of four features' size, and have a multiple of four
  bool bulk;     // rows of y begin at multiples of 16 bytes, and have a multiple of them
  int item = 4;  // bytes of a feature
};

// What the call asks for.
struct Request {
  bool knn;  // distances and indices; else LID
  bool gradient, loss;
  int estimator, k;
  int tracks;
  int track_estimator[kMostTracks], track_k[kMostTracks];
  int form, reduction;
  double goal;  // ln of the target LID
};

struct Output {
  void* distances;      // [B, k] float, or double for double features, like all of these
  int64_t* indices;     // [B, k]
  void* lid;            // [B]
  uint8_t* degenerate;  // [B]
  void* tracked;        // [tracks, B]
  void* grad;           // [B, D]
  void* value;          // [] or [B]
  void* coeff;          // [B]
};

// A reference that may be a neighbour: its key (tile.h), sortable, and where the tiles met it.
struct alignas(8) Candidate {
  int key;
  int position;
};

// What packing knows of a row: the squared norm of what it packed, and what it lost of it (operands.h).
struct alignas(8) Packed {
  float norm, residual;
};

// How the problem is cut up. Lengths in rows unless they say otherwise.
struct Plan {
  bool tiles;      // candidates from tensor-core tiles; else every pair exactly
  bool sums;       // the gradient is summed while distances are taken (exact.h)
  bool symmetric;  // each tile serves the rows of both its sides
  bool once;       // all references are packed at once; else a step's at a time, in two buffers, ...
  int macros;      // ... or, if not 0, so many macro-blocks in turn, in three (macro.h), ...
  int macro, larger;  // ... of so many blocks, and how many of them have one more
  int width;       // blocks of references in a tile: 1, or 2 on Hopper ...
  int narrow;      // ... but 1 in so many steps, from the first on
  int run;         // tiles of a ticket, of one block of queries, ...
  int kept;        // ... of which so many boxes stay in shared memory meanwhile: all or none (tile_stage_hopper.h)
  int columns;     // of a packed row: D up to a multiple of the tile's step
  int cap;         // candidates a query has room for
  int room;        // of a list in shared memory, a power of two
  int panel;       // queries at a time
  int panels;
  int chunk;       // references in one of the buffers
  int meetings;    // a query block's meetings with blocks of references, in all ...
  int first, most;  // ... in the first step, and at most in any
  int growth;       // of the references seen, from one step to the next
  int steps;
  int64_t stride, back;  // reference met at position p is p * stride % N; stride * back % N = 1
  int teams, team_shift; // of 1 << team_shift threads, each working on a query
  int turns, row_bytes;  // of a team's ring (ring.h): turns of rows, and what one row takes
  int ring_at, chunks;   // ... where it begins in the team's memory; turns in which a row comes
  int together;          // queries of a team that read the references together, every pair being computed
  int query_share;       // queries a team takes at a time
  int compacting;        // warps that have room to compact a list
  int dense_rows, dense_references;  // of a round (rounds.h) of rows that every pair is computed for; 0: direct.h's way
  float gamma;           // relative rounding bound of a key
};

// Words of the state.
enum StateWord : int {
  kTicket, kFinished, kLargestLow, kLargestHigh, kExtent, kShifted, kFailed, kScanned, kPackedQueries,
  kPackedReferences, kTiled = kPackedReferences + 3,  // of each buffer
  kCompacted = kTiled + 3, kRowsDone, kDense, kDenseOdd, kSelected, kSelectedOdd, kFixedWords
};

struct Space {
  unsigned* state;     // [kFixedWords]
  unsigned* arrivals;  // [blocks of queries] meetings held
  unsigned* ready;     // [blocks of queries] compactions done
  float* centre;       // [D]
  __half* x;           // [panel, columns], the same as y if symmetric
  Packed* x_packed;    // [panel], the same as y_packed if symmetric
  __half* y;           // [N, or 2 or 3 chunk, columns], by position
  Packed* y_packed;    // [N]
  Candidate* list;     // [panel, cap]
  unsigned* count;     // [panel]; more than cap: the row has failed
  float* limit;        // [panel] what a key has to pass
  float* reach;        // [panel]
  int* failed;         // [B] queries that need every pair
  double* pairs;       // [2, dense_rows, dense_references] squared distances, below 0 where they are tiny (dense.h)
  Neighbour* nearest;  // [dense_rows, wanted] of the references so far, where a panel takes several rounds
  int* found;          // [dense_rows] of them
};

// Of the packed queries and references, for Hopper's tensor copies: a CUtensorMap (tensor_map.h).
struct alignas(64) TensorMap {
  char bytes[128];
};

struct Arguments {
  TensorMap maps[2];
  Problem p;
  Request r;
  Output o;
  Plan plan;
  Space s;
};

// The block's copy, which stages read where they need it: registers are short.
__device__ inline const Arguments& arguments() {
  return *reinterpret_cast<const Arguments*>(shared_memory() + kArgumentsAt);
}

}  // namespace ldreg::cuda
