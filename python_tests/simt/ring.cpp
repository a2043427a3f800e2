// Checks of csrc/cuda/ring.h and exact.h on the machine of simt.h: distances of small integers have to be exact, whatever the
// order of threads and however late rows arrive. `ring bulk SEED`, `ring async SEED`: what is wrong goes to stderr.
// kernels/test_cuda_rows.py also compiles it with mistakes, which have to be found.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "exact.h"

namespace ldreg::cuda {

constexpr int kReferences = 23, kTeams = 2, kThreads = 64 * kTeams, kRoom = 64;

// Two lists of each team, one after the other: distances to out[2 * team + list][reference].
template <bool kBulk>
void distances(const Arguments& given, float* out) {
  for (int i = thread_id(); i < int(sizeof(Arguments) / sizeof(int)); i += kThreads)
    reinterpret_cast<int*>(shared_memory() + kArgumentsAt)[i] = reinterpret_cast<const int*>(&given)[i];
  __syncthreads();
  const Arguments& a = arguments();
  const Team team = this_team();
  const int ring_bytes = a.plan.turns * rows_together(a.p.D) * a.plan.row_bytes;
  const TeamShared<float> shared{kControlBytes + team.id * (a.plan.ring_at + ring_bytes)};
  const Ring<float, kBulk, 8> ring(shared);
  ring.open();
  for (int l = 0; l < 2; ++l) {
    if (team.thread == 0) shared.task() = {1.0, 1, kRoom, TeamShared<float>::padded(a.p.D), 0, kReferences, 0};
    team.sync();
    for (int j = team.thread; j < kReferences; j += team.threads) shared.list()[j] = {0, (j * 7 + l + team.id) % kReferences};
    load_query<float>(a, 2 * team.id + l, 1.0f, shared.x());
    team.sync();
    evaluate<float, kBulk, 8>(shared);
    team.sync();
    for (int j = team.thread; j < kReferences; j += team.threads)
      out[(2 * team.id + l) * kReferences + shared.list()[j].index / 2] = float(shared.list()[j].d2);
    team.sync();
  }
  ring.close();
}

template <bool kBulk>
bool right(int D, int stride, int turns, uint64_t seed) {
  std::vector<float> rows(size_t(kReferences * stride)), out(size_t(2 * kTeams * kReferences), -1);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = float(int(i * 2654435761u >> 20) % 15 - 7);
  Arguments a{};
  a.p.x = a.p.y = rows.data(), a.p.x_stride = a.p.y_stride = stride, a.p.B = a.p.N = kReferences, a.p.D = D;
  a.p.bulk = D % 4 == 0 && stride % 4 == 0, a.p.aligned = a.p.bulk;
  a.plan.room = kRoom, a.plan.team_shift = 6, a.plan.turns = turns, a.plan.row_bytes = row_bytes(D, 4);
  a.plan.chunks = ceil_div(D, 512), a.plan.ring_at = TeamShared<float>::bytes(1, kRoom, D, false);
  simt::Launch launch;
  launch.grid = 1, launch.block = kThreads, launch.seed = seed;
  launch.shared_bytes = size_t(kControlBytes + kTeams * (a.plan.ring_at + turns * rows_together(D) * a.plan.row_bytes));
  simt::launch(launch, [&] { distances<kBulk>(a, out.data()); });
  for (int q = 0; q < 2 * kTeams; ++q)
    for (int j = 0; j < kReferences; ++j) {
      double d2 = 0;
      for (int c = 0; c < D; ++c) {
        const double v = rows[size_t(q * stride + c)] - rows[size_t(j * stride + c)];
        d2 += v * v;
      }
      if (out[size_t(q * kReferences + j)] == float(d2)) continue;
      std::fprintf(stderr, "D = %d, %d turns: query %d, reference %d: %g, not %g\n", D, turns, q, j,
                   double(out[size_t(q * kReferences + j)]), d2);
      return false;
    }
  return true;
}

}  // namespace ldreg::cuda

int main(int, char** given) {
  using namespace ldreg::cuda;
  const bool bulk = std::string(given[1]) == "bulk";
  const uint64_t seed = std::strtoull(given[2], nullptr, 10);
  try {
    for (const int D : {1, 100, 129, 512})
      for (const int turns : {1, 3}) {
        const int stride = D + (D == 100 ? 4 : 0);
        if (!(bulk ? right<true>(D, stride, turns, seed) : right<false>(D, stride, turns, seed))) return 1;
      }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
