// Walks the CUDA schedule ticket by ticket, one job after another, and checks what no single launch can show: every query
// meets every reference once, a job finds what it waits for done by smaller tickets, buffers hold what a tile reads.
//
// Contract: `schedule` walks problems of 1 to 41 blocks, symmetric, by macro-blocks and one-sided, tiles one and two blocks
// wide, narrow ones in the first steps or not, packed at once and in steps; exit code 1 and a line for each kind of fault.
// The rules come from schedule.h and tile.h themselves: meeting(), meetings(), base(). No device code runs.
#include <cstdio>
#include <set>
#include <vector>

#include "cuda/ldreg_launch.h"

using namespace ldreg::cuda;

namespace {

long faults = 0;

void expect(bool held, const char* what, const Arguments& a) {
  if (held || ++faults > 20) return;
  std::printf("%s: B %d, N %d, k %d, width %d, %s, %s, %d macro-blocks\n", what, a.p.B, a.p.N, a.p.wanted, a.plan.width,
              a.plan.symmetric ? "symmetric" : "one-sided", a.plan.once ? "at once" : "in steps", a.plan.macros);
}

// What running blocks have done so far: the counters of a launch, and what they stand for.
class Walk {
 public:
  Walk(int B, int N, int wanted, bool same, int width, int64_t budget, int multiprocessors, int macros = 0) {
    a_.p.B = B, a_.p.N = N, a_.p.D = 64, a_.p.wanted = wanted, a_.p.same = same, a_.p.exact = true;
    const int kept_columns = width == 2 ? 512 : 0;
    a_.plan = make_plan<float>(a_.p, true, false, {multiprocessors, 256, 229376, 1000, width, 64, kept_columns}, budget);
    queries_ = ceil_div(B, kBlock), references_ = ceil_div(N, kBlock);
    if (macros) {  // so many, whatever the budget
      a_.plan.run = 1 + macros % 3, a_.plan.macros = macros, a_.plan.once = false, a_.plan.symmetric = true;
      a_.plan.macro = references_ / macros, a_.plan.larger = references_ % macros;
      a_.plan.chunk = ceil_div(references_, macros) * kBlock;
      a_.plan.first = a_.plan.cap / kBlock / 2, a_.plan.most = references_, a_.plan.panel = N, a_.plan.panels = 1;
    }
    arrived_.resize(queries_), ready_.resize(queries_), places_.resize(queries_);
    met_.assign(queries_, std::vector<int>(references_));
    seen_.assign(queries_, 0), seen_by_limit_.assign(queries_, 0);
    buffer_.assign(a_.plan.once ? references_ : buffers(a_.plan) * a_.plan.chunk / kBlock, -1);
  }

  void run() {
    const Schedule schedule(a_);
    Cursor at = schedule.start();
    for (unsigned ticket = 0;; ++ticket) {
      schedule.seek(at, ticket);
      const int job = int(ticket - at.first);
      switch (at.job) {
        case Job::scan: ++scanned_; break;
        case Job::pack_references: pack(schedule, at, job); break;
        case Job::pack_queries:
          expect(rows_ == at.rows, "queries are packed over lists in use", a_);
          ++packed_queries_;
          break;
        case Job::tiles:
          for (int t = 0; t < schedule.run(at, ticket); ++t) tile(schedule, at, ticket, t);
          break;
        case Job::compact: compact(schedule, at, job); break;
        case Job::rows: rows(schedule, at, job); break;
        default: return finish(at);
      }
    }
  }

 private:
  void pack(const Schedule& schedule, const Cursor& at, int job) {
    expect(scanned_ == schedule.scan_jobs(), "packed before the scale is known", a_);
    const Packing packing = schedule.packing(at);
    const int first = packing.first + job * kPackRows, buffer = packing.buffer;
    if (!a_.plan.once) expect(tiled_[buffer] == at.tiles[buffer], "packed over references in use", a_);
    expect(first < packing.end, "packed beyond the end", a_);
    buffer_.at((first + packing.base) / kBlock) = first / kBlock;
    ++packed_[buffer];
  }

  void tile(const Schedule& schedule, const Cursor& at, unsigned ticket, int number) {
    expect(packed_[at.buffer] == at.packs[at.buffer] && packed_queries_ == at.queries, "a tile before its operands", a_);
    if (a_.plan.macros) expect(packed_[at.stays] == at.packs[at.stays], "a tile before its operands", a_);
    const TileAt tile = tile_at(a_, at, ticket, number);
    expect(number == 0 || tile.m[0].query_block == queries_kept_, "a run of tiles of several blocks of queries", a_);
    queries_kept_ = tile.m[0].query_block;
    for (int h = 0; h < a_.plan.width; ++h) {
      const Meeting& m = tile.m[h];
      expect(m.there || !m.back, "references meet queries that do not meet them", a_);
      if (!m.there) continue;
      expect(buffer_.at((int64_t(m.reference_block) * kBlock + schedule.base(at)) / kBlock) == m.reference_block,
             "a buffer holds other references", a_);
      if (a_.plan.macros) {
        const int kept = buffer_.at(m.query_block + schedule.query_base(at) / kBlock);
        expect(kept == m.query_block, "a buffer holds other queries", a_);
      }
      meet(schedule, at, m.query_block, m.reference_block, m.place, at.queries_compacted);
      if (m.back) meet(schedule, at, m.reference_block, m.query_block, m.place_back, at.references_compacted);
    }
    ++tiled_[at.buffer];
    if (!schedule.among_themselves(at)) ++tiled_[at.stays];
  }

  void meet(const Schedule& schedule, const Cursor& at, int block, int reference, int place, int compacted) {
    const int query = schedule.block_of(at.panel, block);
    ++met_[query][reference], ++arrived_[query], ++seen_[query];
    if (at.step == 0) expect(places_[query].insert(place).second, "two blocks at one place of a list", a_);
    else expect(ready_[query] == schedule.compactions(at.panel, block, compacted), "a tile before its threshold", a_);
  }

  void compact(const Schedule& schedule, const Cursor& at, int job) {
    const int slot = schedule.compacted(at, job), block = slot / kBlock, held = schedule.meetings(at, block);
    const int query = schedule.block_of(at.panel, block);
    expect(slot < schedule.bottom(at.panel) - schedule.top(at.panel), "a list that is not there is compacted", a_);
    expect(arrived_[query] == unsigned(held), "a list is compacted before it is complete", a_);
    expect(schedule.complete(at, block) == (held == references_), "the last compaction is not the last", a_);
    room(query, at);
    if (at.step == 0)
      expect(int(places_[query].size()) == held && *places_[query].rbegin() == (held - 1) * kBlock &&
                 held * kBlock <= a_.plan.cap, "a list with holes, or longer than its room", a_);
    ++ready_[query], ++compacted_;
  }

  // What a list may hold: `growth` times the references that its threshold comes from, or the least that a step takes.
  void room(int query, const Cursor& at) {
    if (seen_[query] == seen_by_limit_[query]) return;  // a part of the same compaction
    const int least = at.step == 0 ? seen_[query] : at.sweep != at.other ? a_.plan.chunk / kBlock : 2 * a_.plan.width;
    expect(seen_[query] <= std::max(a_.plan.growth * seen_by_limit_[query], seen_by_limit_[query] + least),
           "more references between two compactions than a list has room for", a_);
    seen_by_limit_[query] = seen_[query];
  }

  void rows(const Schedule& schedule, const Cursor& at, int job) {
    const int first = job * schedule.rows_of_job();
    const int last = smaller(first + schedule.rows_of_job(), schedule.bottom(at.panel) - schedule.top(at.panel));
    for (int b = first / kBlock; b <= (last - 1) / kBlock; ++b)
      expect(ready_[schedule.block_of(at.panel, b)] == schedule.all_compactions(at.panel, b), "a row before its list", a_);
    ++rows_;
  }

  void finish(const Cursor& at) {
    expect(compacted_ == at.compacts, "failed rows are counted too early", a_);
    for (const auto& row : met_)
      for (int times : row) expect(times == 1, "a pair of blocks met not once", a_);
  }

  Arguments a_{};
  int queries_, references_, queries_kept_ = -1;
  unsigned scanned_ = 0, packed_queries_ = 0, compacted_ = 0, rows_ = 0;
  unsigned packed_[kPackedBuffers] = {}, tiled_[kPackedBuffers] = {};
  std::vector<unsigned> arrived_, ready_;
  std::vector<std::set<int>> places_;  // of the first step, in a list
  std::vector<std::vector<int>> met_;
  std::vector<int> seen_, seen_by_limit_;  // blocks of references: all, and those before the last compaction
  std::vector<int> buffer_;  // which block of references lies where
};

}  // namespace

int main() {
  long walks = 0;
  for (int width : {1, 2})
    for (int blocks = 1; blocks <= 41; ++blocks)
      for (int more : {0, 1, -60})
        for (int wanted : {5, 64, 128, 129, 300})
          for (int64_t budget : {kBudget, int64_t(400000), int64_t(1500000)}) {
            const int N = blocks * kBlock + more;
            if (N <= wanted) continue;
            Walk(N, N, wanted, true, width, budget, more == 0 ? 132 : 24).run(), ++walks;
            if (budget == kBudget)
              for (int macros : {2, 3, 5, 8})
                if (N / kBlock / macros >= std::max(4, 4 * wanted / kBlock))
                  Walk(N, N, wanted, true, width, budget, more == 0 ? 132 : 24, macros).run(), ++walks;
            for (int B : {1, 127, 500, 1300})
              if (blocks % 5 == 0) Walk(B, N, wanted, false, width, budget, more == 0 ? 132 : 24).run(), ++walks;
          }
  std::printf("%ld walks, %ld faults\n", walks, faults);
  return faults > 0;
}
