// How a problem is cut up for a device, and where in the workspace everything lies. Host only, no CUDA calls.
//
// Contract: `make_plan` depends on sizes alone, so the same call always gets the same plan, and results do not depend on
// what else a device is doing. The workspace is at most `budget` bytes, plus 8 cap bytes a query (cap is about 4 k), plus
// 8 bytes a reference; if even the smallest plan does not fit a device's shared memory, std::invalid_argument says so.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "select.h"

namespace ldreg::cuda {

// What of a device and a kernel the plan depends on.
struct Limits {
  int blocks;        // of a launch: one for each multiprocessor
  int threads;       // of a block
  int shared_bytes;  // for the stages of a block, without the control words
  int tile_bytes;    // ... of which the tile stage needs this many
  int width, step;   // of the tile: blocks of references, and features at a time
  int kept_columns;  // of a block of queries that stays in shared memory; 0: the stage keeps none
  int dense_bytes;   // as tile_bytes, of the tiles of dense.h
};

constexpr int64_t kBudget = int64_t(62) << 20;
constexpr int kRun = 8;  // more hardly saves copies of queries, and longer runs end less evenly

// How every pair is computed where nothing better is done: all by direct.h, all by dense.h, or by what is counted to take less.
enum class Pairs : int { counted, direct, dense };

// Cycles of a Hopper multiprocessor, as counted from the compiled kernels (benchmarks/NOTES.md), of the ways there are.
struct Cycles {
  const Problem& p;
  int item, blocks;  // bytes of a feature; multiprocessors
  static constexpr double kBytes = 23.7;  // from L2, when all read

  double rounds(double jobs) const { return std::ceil(jobs / blocks); }
  double gathered(double rows) const { return rows * p.B * p.D * item / (kBytes * blocks); }
  // Two instructions for a pair and a column, 128 lanes (64 in double), and a tenth for loads and flushes. The gradient is
  // gathered afterwards.
  double dense(int gradient_rows) const {
    const double tile = 1.1 * 2 * kBlock * (item == 8 ? 2 : 1) * p.D;
    return rounds(std::ceil(p.B / double(kBlock)) * std::ceil(p.N / double(kBlock))) * tile + gathered(gradient_rows);
  }
  // Three for four queries of a team that share a reference.
  double direct(int teams, int together, int gradient_rows) const {
    const double job = 3.0 * teams * together * p.N * p.D / 128 * (item == 8 ? 2 : 1);
    return rounds(std::ceil(p.B / double(teams * together))) * job + gathered(gradient_rows);
  }
  // Products at 60 % of the tensor cores' rate, and rows of 1.1 k candidates, from which the gradient comes, too: at the rate of
  // L2 or, where lists are so long that few teams have room for theirs, by the latency of their turns, sorts included.
  double lists(const Plan& plan) const {
    const double turns = std::ceil(1.1 * p.wanted / rows_together(p.D)) * plan.chunks;
    const double latency = rounds(std::ceil(p.B / double(plan.teams))) * turns * 2500;
    return double(p.B) * p.N * p.D / (0.6 * 2048 * blocks) + std::max(gathered(1.1 * p.wanted), latency);
  }
};

// Words of the state: fixed ones, and two for each block of queries.
inline int64_t state_words(const Plan& plan, int B) { return kFixedWords + (plan.tiles ? 2 * ceil_div(B, kBlock) : 0); }

// Buffers of packed references, if they are not packed at once.
inline int buffers(const Plan& plan) { return plan.macros ? kPackedBuffers : 2; }

// So many macro-blocks that three of them fit `room` blocks; 0 if they were too small to give thresholds, which come from
// a list full of references.
inline int macros_for(int blocks, int64_t room, int in_list) {
  const int most = int(room / kPackedBuffers);
  const int macros = most > 0 ? ceil_div(blocks, most) : blocks;
  return macros > 1 && blocks / macros >= in_list ? macros : 0;
}

inline int turn_bytes(const Problem& p, const Plan& plan) { return rows_together(p.D) * plan.row_bytes; }

template <class Real>
int team_bytes(const Problem& p, const Plan& plan, int together) {
  const int direct = TeamShared<Real>::bytes(together, plan.room, p.D, false);
  return plan.tiles ? std::max(direct, plan.ring_at + plan.turns * turn_bytes(p, plan)) : direct;
}

// As many teams as fit, and queries that share a reference: the first matter more to lists, the second to all pairs.
// Whether any does. What is left then lengthens the rings.
template <class Real>
bool choose_teams(const Problem& p, const Limits& limits, Plan& plan) {
  int best = 0;
  plan.team_shift = plan.tiles ? row_team_shift(p.D) : 7;
  plan.turns = 1, plan.row_bytes = row_bytes(p.D, p.item), plan.chunks = ceil_div(p.D, columns_at_once(p.D));
  plan.ring_at = TeamShared<Real>::bytes(1, plan.room, p.D, plan.sums);
  for (int teams = limits.threads >> plan.team_shift; teams >= 1; --teams)
    for (int together = kMostTogether; together >= 1; together /= 2) {
      const int worth = plan.tiles ? 8 * teams + together : teams * together + (together > 1 ? 8 * together : 0);
      if (teams * team_bytes<Real>(p, plan, together) > limits.shared_bytes || worth <= best) continue;
      best = worth, plan.teams = teams, plan.together = together;
    }
  if (best == 0) return false;
  if (plan.tiles) {
    const int room = std::min(limits.shared_bytes / plan.teams - plan.ring_at, kRingBytes / plan.teams);
    plan.turns = std::clamp(room / turn_bytes(p, plan), 1, kMostTurns);
  }
  return true;
}

// Rounds of a panel of queries and a stretch of references (rounds.h), two of which have room in an eighth of five budgets: all
// references where that leaves two tiles of queries at least.
inline void choose_rounds(const Problem& p, int rows, int64_t budget, Plan& plan) {
  const int64_t room = budget / 8 * 5 / 2 / int64_t(sizeof(double)), block = kBlock;
  const auto whole = [&](int64_t n) { return std::max<int64_t>(n / block, 1) * block; };
  const int64_t all = int64_t(ceil_div(p.N, kBlock)) * block, most = int64_t(ceil_div(rows, kBlock)) * block;
  int64_t panel = std::min(whole(room / all), most), stretch = all;
  if (panel < std::min(2 * block, most) || panel * all > std::max(room, block * block)) {
    panel = std::min(room >= 2 * block * block ? 2 * block : block, most);
    stretch = std::min(whole(room / panel), all);
  }
  const int64_t panels = (rows + panel - 1) / panel;  // as many, of one size
  plan.dense_rows = int((((rows + panels - 1) / panels) + block - 1) / block * block);
  plan.dense_references = int(stretch);
}

// How many times the references seen so far may be seen after the next step, so that lists have room: a threshold from s
// references admits k of the next s, give or take its own deviation (1 in sqrt k) and chance; six deviations, and a tenth
// for the error bounds. The order of references is spread evenly (operands.h), so chance it is.
inline int growth_for(double k, double cap) {
  int growth = 2;
  const auto needs = [&](double more) { return 1.2 * k + 1.1 * more * k + 6 * std::sqrt(more * more * k + more * k); };
  while (needs(growth) <= cap) ++growth;  // growth + 1 times as many: `growth` times more
  return growth;
}

// Whether a step of so many tiles is faster with twice as many of half the width. Those load 2/3 of the bytes each: up to
// 3/8 of an H200's multiprocessors the products of the wide ones take longer (16 cycles a feature), beyond it the level-2
// cache with the narrow ones (512 bytes a tile and feature, 3134 a cycle).
inline bool few_tiles(int tiles, const Limits& limits) { return 8 * tiles <= 3 * limits.blocks; }

// Tickets are 32-bit words; so many jobs are minutes of work.
inline void check_jobs(const Problem& p) {
  const int64_t tiles = int64_t(ceil_div(p.B, kBlock)) * ceil_div(p.N, kBlock);
  if (tiles >= int64_t(1) << 31)
    throw std::invalid_argument("x has " + std::to_string(p.B) + " rows and y " + std::to_string(p.N) +
                                ": more pairs than one launch on backend 'cuda' takes; call it for fewer rows at a time");
}

// Queries that a team takes in a job, at most 8: those with which the last block ends first. A job costs about a fifth of a
// query besides: ticket, counters, a ring that fills and empties.
inline int query_share(const Plan& plan, const Limits& limits) {
  int best = 1;
  const auto cost = [&](int share) {
    const int64_t jobs = (plan.panel + int64_t(share) * plan.teams - 1) / (int64_t(share) * plan.teams);
    return (jobs + limits.blocks - 1) / limits.blocks * (5 * share + 1);
  };
  for (int share = 2; share <= 8; ++share)
    if (cost(share) < cost(best)) best = share;
  return best;
}

// `sums`: the gradient is summed while distances are taken.
template <class Real>
Plan make_plan(const Problem& p, bool tiles, bool sums, const Limits& limits, int64_t budget = kBudget,
               Pairs pairs = Pairs::counted, int gradient_rows = 0) {
  Plan plan{};
  plan.sums = sums;
  plan.tiles = tiles && sizeof(Real) == 4;
  plan.once = true;
  plan.width = limits.width;
  plan.columns = ceil_div(p.D, limits.step) * limits.step;
  plan.panel = p.B, plan.panels = 1;
  plan.stride = plan.back = 1;
  plan.run = 1;
  plan.gamma = (1.5f * p.D + 64) * 0x1p-23f;  // tensor cores truncate partial sums; threshold.h
  if (!plan.tiles) {
    plan.room = power_above(p.wanted + kLeastRound);
    if (choose_teams<Real>(p, limits, plan)) {
      const Cycles cycles{p, int(sizeof(Real)), limits.blocks};
      const bool dense = cycles.dense(gradient_rows) < cycles.direct(plan.teams, plan.together, gradient_rows);
      if (pairs == Pairs::dense || (pairs == Pairs::counted && dense)) {
        plan.teams = std::min(limits.threads / kTeam, limits.shared_bytes / team_bytes<Real>(p, plan, 1)), plan.together = 1;
        choose_rounds(p, p.B, budget, plan);
        check_jobs(p);
      }
      return plan;
    }
    throw std::invalid_argument("D = " + std::to_string(p.D) + " with k = " + std::to_string(p.wanted) + " needs " +
                                std::to_string(team_bytes<Real>(p, plan, 1)) + " bytes of shared memory, this device has " +
                                std::to_string(limits.shared_bytes));
  }
  check_jobs(p);

  plan.cap = power_above(std::max(4 * p.wanted, 4 * kBlock)), plan.room = plan.cap;
  // Wide rows and long lists may not fit a small device's shared memory together; every pair does.
  if (!choose_teams<Real>(p, limits, plan)) return make_plan<Real>(p, false, false, limits, budget, pairs, gradient_rows);
  const int64_t row = plan.columns * int64_t(sizeof(__half));
  const int reference_blocks = ceil_div(p.N, kBlock), in_list = plan.cap / kBlock;
  plan.once = p.N * row <= budget / 2 || (p.same && p.N * row <= budget * 7 / 8);
  plan.macros = p.same && !plan.once ? macros_for(reference_blocks, budget * 7 / 8 / row / kBlock, in_list) : 0;
  plan.symmetric = p.same && (plan.once || plan.macros);
  plan.meetings = meetings_of(plan, reference_blocks);
  plan.first = plan.symmetric ? in_list / 2 : in_list;  // 2 first - 1 blocks, if symmetric
  plan.most = plan.meetings;
  const auto whole_blocks = [](int64_t rows, int blocks) {
    return int(std::max<int64_t>(rows / (blocks * kBlock), 1) * blocks * kBlock);
  };
  if (plan.macros) {
    plan.macro = reference_blocks / plan.macros, plan.larger = reference_blocks % plan.macros;
    plan.chunk = ceil_div(reference_blocks, plan.macros) * kBlock;
    if (plan.columns <= limits.kept_columns) plan.kept = plan.columns / limits.step, plan.run = kRun;
  } else if (!plan.once) {
    plan.chunk = whole_blocks(budget / 4 / row, 2);
    plan.most = plan.chunk / kBlock, plan.first = smaller(plan.first, plan.most);
  }
  if (!plan.symmetric) {
    const int64_t list = plan.cap * int64_t(sizeof(Candidate));
    plan.panel = whole_blocks(std::min(budget / 4 / row, budget / list), 1);
    plan.panels = ceil_div(p.B, plan.panel);
    plan.panel = whole_blocks(ceil_div(p.B, plan.panels) + kBlock - 1, 1);  // as many panels, of one size
    plan.panels = ceil_div(p.B, plan.panel);
  }
  plan.stride = std::max<int64_t>(1, int64_t(p.N * 0.6180339887498949));
  while (std::gcd(plan.stride, int64_t(p.N)) > 1) ++plan.stride;
  // stride * back = 1 modulo N, by Euclid's algorithm
  int64_t r = p.N, next = plan.stride, back = 0, next_back = 1;
  while (next != 0) {
    const int64_t q = r / next, rest = r - q * next, factor = back - q * next_back;
    r = next, next = rest, back = next_back, next_back = factor;
  }
  plan.back = ((back % p.N) + p.N) % p.N;
  plan.growth = growth_for(p.wanted, plan.cap);
  const int blocks = ceil_div(plan.panel, kBlock);
  for (int met = 0, meets = smaller(plan.first, plan.meetings); met < plan.meetings; ++plan.steps) {
    if (plan.narrow == plan.steps && few_tiles(blocks * ceil_div(meets - met, plan.width), limits)) ++plan.narrow;
    met = meets, meets = meets_after(plan, reference_blocks, meets);
  }
  plan.compacting = smaller(limits.threads / kWarp, limits.shared_bytes / compact_bytes(plan.cap));
  choose_rounds(p, p.B, budget, plan);
  plan.query_share = query_share(plan, limits);
  return plan;
}

// Dynamic shared memory of a block's stages.
template <class Real>
int stage_bytes(const Problem& p, const Plan& plan, const Limits& limits) {
  int bytes = plan.teams * team_bytes<Real>(p, plan, plan.together);
  if (plan.tiles) bytes = std::max({bytes, limits.tile_bytes, plan.compacting * compact_bytes(plan.cap), kCentreBytes});
  if (plan.dense_rows > 0) bytes = std::max(bytes, limits.dense_bytes);
  return std::max(bytes, 1024);
}

// Lays the workspace out from `memory` on; returns its bytes. A null memory only counts.
inline int64_t lay_out(const Problem& p, const Plan& plan, char* memory, unsigned* state, Space& s) {
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using Item = std::remove_reference_t<decltype(*pointer)>;
    pointer = memory ? reinterpret_cast<Item*>(memory + used) : nullptr;
    used = (used + count * int64_t(sizeof(Item)) + 1023) / 1024 * 1024;
  };
  s = Space{};
  s.state = state;
  const int64_t pairs = 2 * int64_t(plan.dense_rows) * plan.dense_references;
  const auto take_rest = [&] {
    const bool kept = plan.dense_references > 0 && plan.dense_references < p.N;
    take(s.nearest, kept ? int64_t(plan.dense_rows) * p.wanted : 0);
    take(s.found, kept ? plan.dense_rows : 0);
  };
  if (!plan.tiles) {
    take(s.pairs, pairs);
    take_rest();
    return used;
  }
  const int64_t blocks = ceil_div(p.B, kBlock), references = int64_t(ceil_div(p.N, kBlock)) * kBlock;
  s.arrivals = state + kFixedWords, s.ready = s.arrivals + blocks;
  const int64_t panel = std::min<int64_t>(plan.panel, blocks * kBlock);
  take(s.centre, plan.columns);
  take(s.y, (plan.once ? references : buffers(plan) * int64_t(plan.chunk)) * plan.columns);
  take(s.y_packed, references);
  if (plan.symmetric) {
    s.x = s.y, s.x_packed = s.y_packed;
  } else {
    take(s.x, panel * plan.columns);
    take(s.x_packed, panel);
  }
  // Nobody reads the operands any more when the first row that failed is looked at; lists, others may still read.
  const int64_t operands = used;
  used = 0;
  take(s.pairs, pairs);
  take_rest();
  used = std::max(used, operands);
  take(s.list, panel * plan.cap);
  take(s.count, panel);
  take(s.limit, panel);
  take(s.reach, panel);
  take(s.failed, p.B);
  return used;
}

}  // namespace ldreg::cuda
