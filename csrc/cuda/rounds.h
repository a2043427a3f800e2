// The order of the dense jobs (dense.h): rounds of queries and references, each a range of tiles and then of selections.
//
// Contract: a round is the queries of a panel, of `rows` that every pair is computed for, against a stretch of references; its
// distances are in one of two buffers. Jobs are numbered on from 0 and taken in this order:
//
//   tiles(0) | tiles(1) | select(0) | tiles(2) | select(1) | ... | select(last)
//
// so that blocks without a tile select meanwhile. Tiles of a round wait until the round before the last has been selected from,
// which was in the same buffer; a selection waits for its own tiles, and for the selection before where a panel has several.
// As in schedule.h, waits are for smaller jobs only, and counters, two of each kind by parity of the round, only grow.
#pragma once

#include "arguments.h"

namespace ldreg::cuda {

struct RoundAt {
  int round = 0;
  bool select = false;
  unsigned first = 0, count = 0;                       // jobs
  unsigned tiled[2] = {0, 0}, selected[2] = {0, 0};  // jobs of the rounds up to here, this one included
};

class Rounds {
 public:
  LDREG_HD Rounds(const Arguments& a, int rows) : a_(a), rows_(rows) {}

  LDREG_HD int stretches() const { return up(a_.p.N, a_.plan.dense_references); }
  LDREG_HD int rounds() const { return up(rows_, a_.plan.dense_rows) * stretches(); }
  // Queries, as numbers of the rows that are computed, and references of a round.
  LDREG_HD int top(int round) const { return round / stretches() * a_.plan.dense_rows; }
  LDREG_HD int bottom(int round) const { return least(top(round) + a_.plan.dense_rows, rows_); }
  LDREG_HD int first(int round) const { return round % stretches() * a_.plan.dense_references; }
  LDREG_HD int last(int round) const { return least(first(round) + a_.plan.dense_references, a_.p.N); }
  LDREG_HD int across(int round) const { return up(last(round) - first(round), kBlock); }  // tiles side by side

  LDREG_HD RoundAt start() const {
    RoundAt at;
    if (rounds() > 0) enter(at, 0, false);
    return at;
  }

  // To the range that this job falls into; past the last one, `round` is rounds().
  LDREG_HD void seek(RoundAt& at, unsigned job) const {
    while (at.round < rounds() && job >= at.first + at.count) advance(at);
  }

 private:
  static LDREG_HD int up(int a, int b) { return (a + b - 1) / b; }
  static LDREG_HD int least(int a, int b) { return a < b ? a : b; }

  LDREG_HD void advance(RoundAt& at) const {
    at.first += at.count;
    const int r = at.round, last = rounds() - 1;
    if (!at.select) return r == 0 && last > 0 ? enter(at, 1, false) : enter(at, r == 0 ? 0 : r - 1, true);
    if (r < last) return r + 2 <= last ? enter(at, r + 2, false) : enter(at, r + 1, true);
    at.round = rounds(), at.count = 0;
  }
  LDREG_HD void enter(RoundAt& at, int round, bool select) const {
    at.round = round, at.select = select;
    const int rows = bottom(round) - top(round);
    at.count = select ? up(rows, a_.plan.teams) : up(rows, kBlock) * across(round);
    (select ? at.selected : at.tiled)[round % 2] += at.count;
  }

  const Arguments& a_;
  int rows_;
};

}  // namespace ldreg::cuda
