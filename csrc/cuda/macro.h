// Macro-blocks: the symmetric schedule for a batch whose packed rows do not fit the workspace all at once.
//
// Contract: blocks of rows are dealt into plan.macros macro-blocks of one size, the first plan.larger a block larger. Sweep j
// packs macro-block j: first its rows meet each other, as in the symmetric schedule of schedule.h, and have thresholds then;
// after that they meet macro-blocks j - 1, j - 2, ... 0, which are packed in turn, and each tile serves the rows of both. So
// after sweep j the first j + 1 macro-blocks have met each other. Rows of macro-block a have seen
//   in their own sweep   macro-blocks a, a - 1, ...;    after a later sweep j   macro-blocks 0 to j.
// A list is compacted after its own macro-block, then whenever the next might have no room (growth, plan.h), and at the end:
// those of the sweep at once, those before it when the sweep is through.
//
// Three buffers hold packed rows: of the macro-block that stays, of the one that meets it, and of the next, which is packed
// meanwhile. What a sweep begins with, macro-block j - 1, is still there from the sweep before. Norms and residuals of all rows
// stay where they are; packing a row again writes the same bits over them.
#pragma once

#include "arguments.h"

namespace ldreg::cuda {

constexpr int kPackedBuffers = 3;

class Macros {
 public:
  LDREG_HD explicit Macros(const Plan& plan) : plan_(plan) {}

  LDREG_HD int size(int macro) const { return plan_.macro + (macro < plan_.larger); }
  LDREG_HD int first(int macro) const { return macro * plan_.macro + (macro < plan_.larger ? macro : plan_.larger); }
  LDREG_HD int of(int block) const {
    return block < first(plan_.larger) ? block / (plan_.macro + 1) : (block - plan_.larger) / plan_.macro;
  }

  // How many blocks the rows of `macro` have seen once they have seen so many macro-blocks.
  LDREG_HD int blocks_seen(int macro, int seen) const {
    return seen <= macro + 1 ? first(macro + 1) - first(macro + 1 - seen) : first(seen);
  }

  // Compactions of a list whose rows have seen so many macro-blocks, without those among its own.
  LDREG_HD int compactions(int seen) const {
    int times = 0;
    for (int at = next(1); at <= seen && at < plan_.macros; at = next(at)) ++times;
    return times + (seen == plan_.macros);
  }
  LDREG_HD bool compacts(int seen) const { return compactions(seen) > compactions(seen - 1); }

 private:
  // Macro-blocks that may be seen before the next compaction.
  LDREG_HD int next(int seen) const {
    const int equal = plan_.growth * seen;  // of one size; else those to come may be larger
    const int room = plan_.larger > 0 ? equal - equal / (plan_.macro + 1) - 1 : equal;
    return room > seen ? room : seen + 1;
  }

  const Plan& plan_;
};

}  // namespace ldreg::cuda
