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

#include "direct.h"

namespace ldreg::cuda {

// What of a device and a kernel the plan depends on.
struct Limits {
  int blocks;        // of a launch: one for each multiprocessor
  int threads;       // of a block
  int shared_bytes;  // for the stages of a block, without the control words
  int tile_bytes;    // ... of which the tile stage needs this many
  int width, step;   // of the tile: blocks of references, and features at a time
};

constexpr int64_t kBudget = int64_t(62) << 20;

// Words of the state: fixed ones, and two for each block of queries.
inline int64_t state_words(const Plan& plan, int B) { return kFixedWords + (plan.tiles ? 2 * ceil_div(B, kBlock) : 0); }

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

// How many times the references seen so far may be seen after the next step, so that lists have room: a threshold from s
// references admits k of the next s, give or take its own deviation (1 in sqrt k) and chance; six deviations, and a tenth
// for the error bounds. The order of references is spread evenly (operands.h), so chance it is.
inline int growth_for(double k, double cap) {
  int growth = 2;
  const auto needs = [&](double more) { return 1.2 * k + 1.1 * more * k + 6 * std::sqrt(more * more * k + more * k); };
  while (needs(growth) <= cap) ++growth;  // growth + 1 times as many: `growth` times more
  return growth;
}

// Tickets are 32-bit words; so many jobs are minutes of work.
inline void check_jobs(const Problem& p, const Plan& plan) {
  const int64_t tiles = int64_t(ceil_div(p.B, kBlock)) * ceil_div(p.N, kBlock);
  if (plan.tiles && tiles >= int64_t(1) << 31)
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
Plan make_plan(const Problem& p, bool tiles, bool sums, const Limits& limits, int64_t budget = kBudget) {
  Plan plan{};
  plan.sums = sums;
  plan.tiles = tiles && sizeof(Real) == 4;
  plan.once = true;
  plan.width = limits.width;
  plan.columns = ceil_div(p.D, limits.step) * limits.step;
  plan.panel = p.B, plan.panels = 1;
  plan.stride = plan.back = 1;
  plan.gamma = (1.5f * p.D + 64) * 0x1p-23f;  // tensor cores truncate partial sums; threshold.h
  if (!plan.tiles) {
    plan.room = power_above(p.wanted + kLeastRound);
    if (choose_teams<Real>(p, limits, plan)) return plan;
    throw std::invalid_argument("D = " + std::to_string(p.D) + " with k = " + std::to_string(p.wanted) + " needs " +
                                std::to_string(team_bytes<Real>(p, plan, 1)) + " bytes of shared memory, this device has " +
                                std::to_string(limits.shared_bytes));
  }
  check_jobs(p, plan);

  plan.cap = power_above(std::max(4 * p.wanted, 4 * kBlock)), plan.room = plan.cap;
  // Wide rows and long lists may not fit a small device's shared memory together; every pair does.
  if (!choose_teams<Real>(p, limits, plan)) return make_plan<Real>(p, false, false, limits, budget);
  const int64_t row = plan.columns * int64_t(sizeof(__half));
  const int reference_blocks = ceil_div(p.N, kBlock), in_list = plan.cap / kBlock;
  plan.once = p.N * row <= budget / 2 || (p.same && p.N * row <= budget * 7 / 8);
  plan.symmetric = p.same && plan.once;
  plan.meetings = plan.symmetric ? reference_blocks / 2 + 1 : reference_blocks;
  plan.first = plan.symmetric ? in_list / 2 : in_list;  // 2 first - 1 blocks, if symmetric
  plan.most = plan.meetings;
  const auto whole_blocks = [](int64_t rows, int blocks) {
    return int(std::max<int64_t>(rows / (blocks * kBlock), 1) * blocks * kBlock);
  };
  if (!plan.once) {
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
  plan.steps = 1;
  for (int meets = smaller(plan.first, plan.meetings); meets < plan.meetings; ++plan.steps)
    meets = meets_after(plan, reference_blocks, meets);
  plan.compacting = smaller(limits.threads / kWarp, limits.shared_bytes / (plan.cap * int(sizeof(int))));
  plan.query_share = query_share(plan, limits);
  return plan;
}

// Dynamic shared memory of a block's stages.
template <class Real>
int stage_bytes(const Problem& p, const Plan& plan, const Limits& limits) {
  int bytes = plan.teams * team_bytes<Real>(p, plan, plan.together);
  if (plan.tiles) bytes = std::max({bytes, limits.tile_bytes, plan.compacting * plan.cap * int(sizeof(int)), kCentreBytes});
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
  if (!plan.tiles) return 0;
  const int64_t blocks = ceil_div(p.B, kBlock), references = int64_t(ceil_div(p.N, kBlock)) * kBlock;
  s.arrivals = state + kFixedWords, s.ready = s.arrivals + blocks;
  const int64_t panel = std::min<int64_t>(plan.panel, blocks * kBlock);
  take(s.centre, plan.columns);
  take(s.y, (plan.once ? references : 2 * int64_t(plan.chunk)) * plan.columns);
  take(s.y_norm, references);
  take(s.y_residual, references);
  if (plan.symmetric) {
    s.x = s.y, s.x_norm = s.y_norm, s.x_residual = s.y_residual;
  } else {
    take(s.x, panel * plan.columns);
    take(s.x_norm, panel);
    take(s.x_residual, panel);
  }
  take(s.list, panel * plan.cap);
  take(s.count, panel);
  take(s.limit, panel);
  take(s.reach, panel);
  take(s.failed, p.B);
  return used;
}

}  // namespace ldreg::cuda
