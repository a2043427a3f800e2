// The order of work: tickets to jobs, and what a job has to wait for.
//
// Contract: every launch is one sequence of jobs, numbered by tickets, that blocks take one after another. A job waits
// only for jobs with smaller tickets, which running blocks have taken; so the launch ends however many blocks are
// resident, and no grid-wide barrier is needed. Nothing here computes; all counters it names only grow.
//
//   scan | pack references (if once) | for every panel of queries:
//     pack queries | for every step: (pack references) | tiles | compact || rows   || every pair, of the rows that failed
//
// A step is a range of meetings of every block of queries with blocks of references. Meeting e of block i is with block e;
// or, if symmetric, with block i + e (modulo the number of blocks), a tile that serves both: distances 0 to half way round
// reach everybody once. Between steps `compact` lowers the thresholds, so steps begin small and grow.
#pragma once

#include "arguments.h"
#include "device.h"

namespace ldreg::cuda {

enum class Job : int { scan, pack_references, pack_queries, tiles, compact, rows, direct, none };

constexpr int kScanRows = 32;     // rows of a scan job
constexpr int kCentreColumns = 64;  // columns of a centre job, which is a scan job too
constexpr int kPackRows = 32;
constexpr int kCompactRows = 32;

LDREG_HD int ceil_div(int a, int b) { return (a + b - 1) / b; }
LDREG_HD int smaller(int a, int b) { return a < b ? a : b; }

// Blocks of references that a block of queries has been held against after `meets` meetings of the sequence; symmetric, it
// is met as well as meeting.
LDREG_HD int blocks_held(const Plan& plan, int reference_blocks, int meets) {
  return plan.symmetric ? smaller(2 * meets - 1, reference_blocks) : meets;
}

// Meetings after the step that follows: `growth` times as many blocks held, whole tiles, no more than there is room for.
LDREG_HD int meets_after(const Plan& plan, int reference_blocks, int meets) {
  const int held = plan.growth * blocks_held(plan, reference_blocks, meets);
  const int meant = (plan.symmetric ? (held + 1) / 2 : held) / plan.width * plan.width;
  return smaller(smaller(meant > meets ? meant : meets + plan.width, meets + plan.most), plan.meetings);
}

// The segment of the sequence that a ticket falls into, and sums over the segments before it.
struct Cursor {
  Job job = Job::scan;
  int panel = 0, step = 0;
  unsigned first = 0, count = 0;  // tickets
  int met = 0, meets = 0;         // meetings before this step, and after it
  unsigned packs[2] = {0, 0}, tiles[2] = {0, 0};  // reference packs and tiles, by parity of the step, up to here
  unsigned queries = 0, rows = 0, compacts = 0;   // jobs of the segments up to here, this one included
};

class Schedule {
 public:
  LDREG_HD explicit Schedule(const Arguments& a) : a_(a) {}

  LDREG_HD int top(int panel) const { return panel * a_.plan.panel; }
  LDREG_HD int bottom(int panel) const { return smaller(top(panel) + a_.plan.panel, a_.p.B); }
  LDREG_HD int blocks(int panel) const { return ceil_div(bottom(panel) - top(panel), kBlock); }  // of queries
  LDREG_HD int reference_blocks() const { return ceil_div(a_.p.N, kBlock); }
  LDREG_HD int block_of(int panel, int block) const { return top(panel) / kBlock + block; }  // among all

  LDREG_HD unsigned scan_jobs() const {
    return (a_.plan.tiles ? ceil_div(a_.p.D, kCentreColumns) : 0) + ceil_div(a_.p.B, kScanRows) +
           (a_.p.same ? 0 : ceil_div(a_.p.N, kScanRows));
  }
  LDREG_HD int rows_of_job() const { return a_.plan.teams * a_.plan.query_share; }
  LDREG_HD int direct_rows() const { return a_.plan.teams * a_.plan.together; }

  LDREG_HD int held(int meets) const { return blocks_held(a_.plan, reference_blocks(), meets); }

  // Blocks of references in the tiles of a step.
  LDREG_HD int width(const Cursor& c) const { return c.step < a_.plan.narrow ? 1 : a_.plan.width; }

  // Compactions of the query block that precede step `step`.
  LDREG_HD unsigned compactions(int panel, int block, int step) const {
    return step * ceil_div(smaller(kBlock, bottom(panel) - top(panel) - block * kBlock), kCompactRows);
  }

  // References of a step, as positions (not symmetric).
  LDREG_HD int first_position(const Cursor& c) const { return c.met * kBlock; }
  LDREG_HD int last_position(const Cursor& c) const { return smaller(c.meets * kBlock, a_.p.N); }

  // The buffer of a step's packed references: row of position 0.
  LDREG_HD int64_t base(const Cursor& c) const {
    return a_.plan.once ? 0 : int64_t(parity(c)) * a_.plan.chunk - int64_t(first_position(c));
  }
  LDREG_HD int parity(const Cursor& c) const { return (c.panel * a_.plan.steps + c.step) % 2; }

  LDREG_HD Cursor start() const {
    Cursor c;
    c.count = scan_jobs();
    return c;
  }

  // To the segment of this ticket, which is not before the cursor.
  LDREG_HD void seek(Cursor& c, unsigned ticket) const {
    while (c.job != Job::none && c.job != Job::direct && ticket >= c.first + c.count) advance(c);
  }

  LDREG_HD void advance(Cursor& c) const {
    c.first += c.count;
    switch (c.job) {
      case Job::scan:
        if (!a_.plan.tiles) return direct(c);
        if (a_.plan.once) return pack_references(c, a_.p.N);
        return pack_queries(c);
      case Job::pack_references: return c.meets == 0 ? pack_queries(c) : tiles(c);
      case Job::pack_queries: return step(c, 0, smaller(a_.plan.first, a_.plan.meetings));
      case Job::tiles:
        c.job = Job::compact;
        c.count = 0;
        for (int b = 0; b < blocks(c.panel); ++b) c.count += compactions(c.panel, b, 1);
        c.compacts += c.count;
        return;
      case Job::compact: {
        if (c.meets < a_.plan.meetings)
          return ++c.step, step(c, c.meets, meets_after(a_.plan, reference_blocks(), c.meets));
        c.job = Job::rows;
        c.count = ceil_div(bottom(c.panel) - top(c.panel), rows_of_job());
        c.rows += c.count;
        return;
      }
      case Job::rows:
        if (++c.panel == a_.plan.panels) return direct(c);
        c.step = 0;
        return pack_queries(c);
      default: c.job = Job::none, c.count = 0;
    }
  }

 private:
  LDREG_HD void direct(Cursor& c) const {
    c.job = Job::direct;
    c.count = ~0u - c.first;  // how many rows failed is known later
  }
  LDREG_HD void pack_queries(Cursor& c) const {
    c.job = Job::pack_queries;
    c.count = a_.plan.symmetric ? 0 : ceil_div(bottom(c.panel) - top(c.panel), kPackRows);
    c.queries += c.count;
  }
  LDREG_HD void pack_references(Cursor& c, int rows) const {
    c.job = Job::pack_references;
    c.count = ceil_div(rows, kPackRows);
    c.packs[a_.plan.once ? 0 : parity(c)] += c.count;
  }
  LDREG_HD void step(Cursor& c, int met, int meets) const {
    c.met = met, c.meets = meets;
    if (a_.plan.once) return tiles(c);
    pack_references(c, last_position(c) - first_position(c));
  }
  LDREG_HD void tiles(Cursor& c) const {
    c.job = Job::tiles;
    c.count = blocks(c.panel) * ceil_div(c.meets - c.met, width(c));
    c.tiles[parity(c)] += c.count;
  }

  const Arguments& a_;
};

}  // namespace ldreg::cuda
