// Walks the dense jobs (csrc/cuda/rounds.h) in their order and checks that each pair of a query and a reference is computed
// once, that stretches of a panel are selected from in order, and that the counters a job waits for are those of exactly the
// jobs it needs, all of them smaller. Exit code 1 and a line for each kind of fault. No device code runs.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda/rounds.h"

using namespace ldreg::cuda;

namespace {

long faults = 0;

void expect(bool held, const char* what, int rows, int N, int panel, int stretch) {
  if (held || ++faults > 20) return;
  std::printf("%s: %d rows, %d references, rounds of %d x %d\n", what, rows, N, panel, stretch);
}

void walk(int rows, int N, int panel, int stretch, int teams) {
  Arguments a{};
  a.p.N = N, a.plan.dense_rows = panel, a.plan.dense_references = stretch, a.plan.teams = teams;
  const auto fault = [&](bool held, const char* what) { expect(held, what, rows, N, panel, stretch); };
  const Rounds rounds(a, rows);
  RoundAt at = rounds.start();
  const int count = rounds.rounds();
  std::vector<unsigned> tiled(count), selected(count);  // jobs done
  std::vector<int> computed(rows / kBlock + 1), done(rows);
  const auto of_parity = [&](const std::vector<unsigned>& jobs, int last) {
    unsigned sum = 0;
    for (int r = last; r >= 0; r -= 2) sum += jobs[r];
    return sum;
  };
  const auto tiles = [&](int r) { return unsigned((rounds.bottom(r) - rounds.top(r) + kBlock - 1) / kBlock * rounds.across(r)); };
  for (unsigned job = 0;; ++job) {
    rounds.seek(at, job);
    if (at.round >= count) break;
    const int r = at.round;
    if (!at.select) {
      fault(r < 2 || at.selected[r % 2] == of_parity(selected, r - 2), "a tile waits for other selections than those before");
      fault(r < 2 || selected[r - 2] > 0, "a tile over distances in use");
      computed[rounds.top(r) / kBlock + int(job - at.first) / rounds.across(r)] += 1;
      ++tiled[r];
      continue;
    }
    fault(tiled[r] == tiles(r) && at.tiled[r % 2] == of_parity(tiled, r), "a selection waits for other tiles than its own");
    fault(rounds.stretches() == 1 || r == 0 || at.selected[1 - r % 2] == of_parity(selected, r - 1),
          "a selection does not wait for the one before");
    for (int t = 0; t < teams; ++t) {
      const int row = rounds.top(r) + int(job - at.first) * teams + t;
      if (row >= rounds.bottom(r)) continue;
      fault(done[row] == rounds.first(r), "a row's stretches are not in order");
      done[row] = rounds.last(r);
    }
    ++selected[r];
  }
  for (int row = 0; row < rows; ++row) {
    fault(done[row] == N, "a row that is not finished");
    int needed = 0;  // tiles side by side, over all stretches
    for (int first = 0; first < N; first += stretch) needed += (std::min(stretch, N - first) + kBlock - 1) / kBlock;
    fault(computed[row / kBlock] == needed, "a pair computed not once");
  }
}

}  // namespace

int main() {
  long walks = 0;
  for (int rows : {0, 1, 127, 128, 129, 700, 1500})
    for (int N : {1, 128, 200, 1000, 1300})
      for (int panel : {128, 256, 512})
        for (int stretch : {128, 384, 1408})
          for (int teams : {1, 2, 5}) walk(rows, N, panel, stretch, teams), ++walks;
  std::printf("%ld walks, %ld faults\n", walks, faults);
  return faults > 0;
}
