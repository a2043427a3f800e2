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
// reach everybody once. Between steps `compact` lowers the thresholds, so steps begin small and grow. A batch too large to be
// packed at once is symmetric by macro-blocks (macro.h):
//
//   scan | pack the first | for every sweep:
//     for every step among its own rows: tiles | compact
//     for every macro-block before it: half the tiles | pack the next | the other half | compact, if lists may be full
//   rows   || every pair, of the rows that failed
#pragma once

#include "device.h"
#include "macro.h"

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

// Meetings of each block of queries in all.
LDREG_HD int meetings_of(const Plan& plan, int reference_blocks) {
  return plan.symmetric ? reference_blocks / 2 + 1 : reference_blocks;
}

// Meetings after the step that follows: `growth` times as many blocks held, whole tiles, no more than there is room for.
LDREG_HD int meets_after(const Plan& plan, int reference_blocks, int meets) {
  const int held = plan.growth * blocks_held(plan, reference_blocks, meets);
  const int meant = (plan.symmetric ? (held + 1) / 2 : held) / plan.width * plan.width;
  return smaller(smaller(meant > meets ? meant : meets + plan.width, meets + plan.most), meetings_of(plan, reference_blocks));
}

// Steps of a sequence of meetings.
LDREG_HD int steps_of(const Plan& plan, int reference_blocks) {
  const int meetings = meetings_of(plan, reference_blocks);
  int steps = 1;
  for (int meets = smaller(plan.first, meetings); meets < meetings; ++steps) meets = meets_after(plan, reference_blocks, meets);
  return steps;
}

// The segment of the sequence that a ticket falls into, and sums over the segments before it.
struct Cursor {
  Job job = Job::scan;
  int panel = 0, step = 0;
  unsigned first = 0, count = 0;  // tickets
  int met = 0, meets = 0;         // meetings before this step, and after it
  unsigned packs[kPackedBuffers] = {}, tiles[kPackedBuffers] = {};  // of references, by buffer, up to here
  int buffer = 0;                 // where the step's references are
  int queries_compacted = 0, references_compacted = 0;  // how often, before this step, lists of either side of a tile
  unsigned queries = 0, rows = 0, compacts = 0;   // jobs of the segments up to here, this one included
  // Of macro-blocks: whose sweep it is and whom its rows meet, themselves first; in which half of the tiles; the buffers of
  // the sweep's rows, and of those of the sweep before; what is packed next, or -1, and into which buffer; compact jobs for
  // lists of the macro-blocks before the sweep's, which come first.
  int sweep = 0, other = 0, half = 0, stays = 0, stayed = 0, packing = -1, into = 0;
  unsigned compacts_before = 0;
};

// Rows that a pack job is one of: positions from `first` to `end`, to row position + base of the packed matrix.
struct Packing {
  int first, end, buffer;
  int64_t base;
};

class Schedule {
 public:
  LDREG_HD explicit Schedule(const Arguments& a) : a_(a) {}

  LDREG_HD int top(int panel) const { return panel * a_.plan.panel; }
  LDREG_HD int bottom(int panel) const { return smaller(top(panel) + a_.plan.panel, a_.p.B); }
  LDREG_HD int blocks(int panel) const { return ceil_div(bottom(panel) - top(panel), kBlock); }  // of queries
  LDREG_HD int reference_blocks() const { return ceil_div(a_.p.N, kBlock); }
  LDREG_HD int block_of(int panel, int block) const { return top(panel) / kBlock + block; }  // among all
  LDREG_HD Macros macros() const { return Macros(a_.plan); }

  LDREG_HD unsigned scan_jobs() const {
    return (a_.plan.tiles ? ceil_div(a_.p.D, kCentreColumns) : 0) + ceil_div(a_.p.B, kScanRows) +
           (a_.p.same ? 0 : ceil_div(a_.p.N, kScanRows));
  }
  LDREG_HD int rows_of_job() const { return a_.plan.teams * a_.plan.query_share; }
  LDREG_HD int direct_rows() const { return a_.plan.teams * a_.plan.together; }

  // What the tiles of a step are among: blocks of queries of the panel, and blocks of references.
  LDREG_HD int first_query(const Cursor& c) const { return a_.plan.macros ? macros().first(c.sweep) : 0; }
  LDREG_HD int first_reference(const Cursor& c) const { return a_.plan.macros ? macros().first(c.other) : 0; }
  LDREG_HD int queries(const Cursor& c) const { return a_.plan.macros ? macros().size(c.sweep) : blocks(c.panel); }
  LDREG_HD int references(const Cursor& c) const { return a_.plan.macros ? macros().size(c.other) : reference_blocks(); }
  // Symmetric: queries and references are the same blocks; else every tile is of two blocks.
  LDREG_HD bool among_themselves(const Cursor& c) const { return c.sweep == c.other; }

  // Blocks of references in the tiles of a step.
  LDREG_HD int width(const Cursor& c) const { return c.step < a_.plan.narrow ? 1 : a_.plan.width; }

  // Tiles of a step and a block of queries, and tickets for these; tiles of the ticket.
  LDREG_HD int across(const Cursor& c) const { return ceil_div(c.meets - c.met, width(c)); }
  LDREG_HD int runs(const Cursor& c) const { return ceil_div(across(c), a_.plan.run); }
  LDREG_HD int run(const Cursor& c, unsigned ticket) const {
    return smaller(a_.plan.run, across(c) - int(ticket - c.first) % runs(c) * a_.plan.run);
  }

  // Blocks of references that each of these queries has been held against after the step.
  LDREG_HD int held(const Cursor& c) const { return blocks_held(a_.plan, references(c), c.meets); }

  // The same for a block of queries of the panel that is compacted after the step.
  LDREG_HD unsigned meetings(const Cursor& c, int block) const {
    if (among_themselves(c)) return held(c);
    return block < first_query(c) ? macros().blocks_seen(0, c.sweep + 1) : macros().blocks_seen(c.sweep, c.sweep - c.other + 1);
  }

  // Whether that compaction is the block's last.
  LDREG_HD bool complete(const Cursor& c, int block) const { return int(meetings(c, block)) == reference_blocks(); }

  // Compact jobs that make up so many compactions of the block of queries.
  LDREG_HD unsigned compactions(int panel, int block, int times) const {
    return times * ceil_div(smaller(kBlock, bottom(panel) - top(panel) - block * kBlock), kCompactRows);
  }
  LDREG_HD unsigned all_compactions(int panel, int block) const {
    if (!a_.plan.macros) return compactions(panel, block, a_.plan.steps);
    return compactions(panel, block, own_steps(macros().of(block)) + macros().compactions(a_.plan.macros));
  }

  // The first list of a compact job.
  LDREG_HD int compacted(const Cursor& c, int job) const {
    const int before = int(c.compacts_before);
    return job < before ? job * kCompactRows : first_query(c) * kBlock + (job - before) * kCompactRows;
  }

  // What a job packs of references.
  LDREG_HD Packing packing(const Cursor& c) const {
    if (a_.plan.once) return {0, a_.p.N, 0, 0};
    const bool macro = a_.plan.macros;
    const int first = macro ? macros().first(c.packing) : c.met, end = macro ? macros().first(c.packing + 1) : c.meets;
    const int buffer = macro ? c.into : c.buffer;
    return {first * kBlock, smaller(end * kBlock, a_.p.N), buffer, buffer * int64_t(a_.plan.chunk) - first * int64_t(kBlock)};
  }

  // The row of the packed matrix where position 0 of the step's references would be, and of its queries.
  LDREG_HD int64_t base(const Cursor& c) const {
    if (a_.plan.once) return 0;
    return c.buffer * int64_t(a_.plan.chunk) - (a_.plan.macros ? first_reference(c) : c.met) * int64_t(kBlock);
  }
  LDREG_HD int64_t query_base(const Cursor& c) const {
    return a_.plan.macros ? c.stays * int64_t(a_.plan.chunk) - first_query(c) * int64_t(kBlock) : 0;
  }

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
        if (a_.plan.macros) return c.packing = 0, pack_references(c);
        return a_.plan.once ? pack_references(c) : pack_queries(c);
      case Job::pack_references:
        if (c.step == 0 && c.meets == 0) return pack_queries(c);  // the first
        return !a_.plan.macros ? tiles(c) : among_themselves(c) ? compact(c) : second_half(c);
      case Job::pack_queries: return a_.plan.macros ? sweep(c, 0) : first_step(c);
      case Job::tiles:
        if (c.packing >= 0 && (among_themselves(c) ? last_step(c) : c.half == 0)) return pack_references(c);
        return among_themselves(c) || c.half == 1 ? compact(c) : second_half(c);
      case Job::compact:
        if (among_themselves(c) && !last_step(c))
          return ++c.step, step(c, c.meets, meets_after(a_.plan, references(c), c.meets));
        if (!a_.plan.macros) return rows(c);
        if (c.other > 0) return c.other == c.sweep ? meet(c, c.sweep - 1, c.stayed) : meet(c, c.other - 1, c.into);
        return c.sweep + 1 < a_.plan.macros ? sweep(c, c.sweep + 1) : rows(c);
      case Job::rows:
        if (++c.panel == a_.plan.panels) return direct(c);
        return pack_queries(c);
      default: c.job = Job::none, c.count = 0;
    }
  }

 private:
  LDREG_HD bool last_step(const Cursor& c) const { return c.meets == meetings_of(a_.plan, references(c)); }
  LDREG_HD int own_steps(int macro) const { return steps_of(a_.plan, macros().size(macro)); }

  LDREG_HD void direct(Cursor& c) const {
    c.job = Job::direct;
    c.count = ~0u - c.first;  // how many rows failed is known later
  }
  LDREG_HD void pack_queries(Cursor& c) const {
    c.job = Job::pack_queries;
    c.count = a_.plan.symmetric ? 0 : ceil_div(bottom(c.panel) - top(c.panel), kPackRows);
    c.queries += c.count;
  }
  LDREG_HD void pack_references(Cursor& c) const {
    c.job = Job::pack_references;
    const Packing packed = packing(c);
    c.count = ceil_div(packed.end - packed.first, kPackRows);
    c.packs[packed.buffer] += c.count;
  }
  LDREG_HD void first_step(Cursor& c) const {
    c.step = 0;
    step(c, 0, smaller(a_.plan.first, meetings_of(a_.plan, references(c))));
  }
  LDREG_HD void step(Cursor& c, int met, int meets) const {
    c.met = met, c.meets = meets;
    c.queries_compacted = c.references_compacted = c.step;
    if (a_.plan.once || a_.plan.macros) return tiles(c);
    c.buffer = (c.panel * a_.plan.steps + c.step) % 2;
    pack_references(c);
  }
  LDREG_HD void tiles(Cursor& c) const {
    c.job = Job::tiles;
    c.count = queries(c) * runs(c);
    c.tiles[c.buffer] += queries(c) * across(c);
    if (!among_themselves(c)) c.tiles[c.stays] += queries(c) * across(c);
  }
  LDREG_HD void compact(Cursor& c) const {
    c.job = Job::compact;
    const int first = first_query(c), last = first + queries(c);
    const bool own = among_themselves(c), through = !own && c.other == 0;
    c.compacts_before = through && macros().compacts(c.sweep + 1) ? first * (kBlock / kCompactRows) : 0;
    c.count = c.compacts_before;
    if (own || macros().compacts(c.sweep - c.other + 1))
      for (int b = first; b < last; ++b) c.count += compactions(c.panel, b, 1);
    c.compacts += c.count;
  }
  LDREG_HD void rows(Cursor& c) const {
    c.job = Job::rows;
    c.count = ceil_div(bottom(c.panel) - top(c.panel), rows_of_job());
    c.rows += c.count;
  }

  // The sweep of a macro-block that was packed last: its rows meet each other. Nothing is packed meanwhile, because the
  // one that is met next still is; but the first sweep has none to meet.
  LDREG_HD void sweep(Cursor& c, int macro) const {
    c.sweep = c.other = macro;
    c.stayed = c.stays, c.stays = c.buffer = c.into;
    c.packing = macro == 0 ? 1 : -1, c.into = (c.stays + 1) % kPackedBuffers;
    first_step(c);
  }
  // Then a macro-block before it.
  LDREG_HD void meet(Cursor& c, int other, int buffer) const {
    c.other = other, c.buffer = buffer, c.into = kPackedBuffers - c.stays - c.buffer;  // 0 + 1 + 2 = 3
    c.packing = other > 0 ? other - 1 : c.sweep + 1 < a_.plan.macros ? c.sweep + 1 : -1;
    c.queries_compacted = own_steps(c.sweep) + macros().compactions(c.sweep - other);
    c.references_compacted = own_steps(other) + macros().compactions(c.sweep);
    ++c.step, c.half = 0;
    c.met = 0, c.meets = (references(c) / 2 + 1) / a_.plan.width * a_.plan.width;
    tiles(c);
  }
  LDREG_HD void second_half(Cursor& c) const {
    c.half = 1, c.met = c.meets, c.meets = references(c);
    tiles(c);
  }

  const Arguments& a_;
};

}  // namespace ldreg::cuda
