// Checks of the dense way (csrc/cuda/dense.h, select.h and the loop over its jobs in ldreg_kernel.h) on the machine of simt.h:
// the nearest of small integers have to be those of plain arithmetic, bit for bit and ties included, whatever the order of
// threads. `dense SEED`: what is wrong goes to stderr. kernels/test_cuda_tiles.py also compiles it with mistakes, which have to
// be found. TEST_REAL: the features; TEST_THREADS: of a tile, 512 of them in a block of 640, as on Hopper.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "ldreg_kernel.h"

namespace ldreg::cuda {

using Real = TEST_REAL;

struct Stage {
  static constexpr bool kPairsOnly = false;
  static constexpr int kDenseThreads = TEST_THREADS, kThreads = kDenseThreads > 256 ? 640 : 256;
};

constexpr int kRoom = 64, kTeamShift = 6, kTeams = 3;

// The jobs of ldreg_kernel.h that are left when every row needs every pair.
void dense_jobs(const Arguments& given) {
  Control& control = *reinterpret_cast<Control*>(shared_memory());
  for (int i = thread_id(); i < int(sizeof(Arguments) / sizeof(int)); i += Stage::kThreads)
    reinterpret_cast<int*>(shared_memory() + kArgumentsAt)[i] = reinterpret_cast<const int*>(&given)[i];
  __syncthreads();
  if (thread_id() == 0) {
    control.at = Cursor();
    control.at.job = Job::direct, control.at.count = ~0u, control.rows = given.p.B;
  }
  next_job(control);
  work_densely<Real, Stage>(control);
}

// ---------------------------------------------------------------- checks

// Features from -few to few. Every fifth row is the one before it but for column 0, 0 and 2^-100 there: squares of float32
// underflow. Every seventh is a copy. few = 0: rows in a line, so that for the last queries every reference is the nearest so
// far.
std::vector<Real> features(int N, int D, int few) {
  std::mt19937 random(7);
  std::vector<Real> rows(size_t(N * D));
  for (int i = 0; few == 0 && i < N; ++i) rows[size_t(i * D)] = Real(i);
  if (few == 0) return rows;
  for (Real& v : rows) v = Real(int(random() % unsigned(2 * few + 1)) - few);
  for (int i = 1; i < N; ++i) {
    if (i % 5 && i % 7) continue;
    std::copy_n(rows.data() + (i - 1) * D, D, rows.data() + i * D);
    if (i % 7 == 0) continue;
    rows[size_t((i - 1) * D)] = 0, rows[size_t(i * D)] = Real(std::ldexp(1.0, -100));
  }
  return rows;
}

// The wanted nearest of the last B rows among N, in rounds of `panel` queries and `stretch` references.
int check(int B, int N, int D, int few, int wanted, int panel, int stretch, unsigned grid, uint64_t seed) {
  const std::vector<Real> rows = features(N, D, few);
  const int panels = (B + panel - 1) / panel, stretches = (N + stretch - 1) / stretch;
  std::vector<unsigned> state(kFixedWords);
  std::vector<double> pairs(size_t(2 * panel * stretch), NAN);
  std::vector<Neighbour> nearest(size_t(panel * wanted));
  std::vector<int> found(size_t(panel), -1);
  std::vector<Real> distances(size_t(B * wanted), Real(-1));
  std::vector<int64_t> indices(distances.size(), -1);

  Arguments a{};
  a.p.x = rows.data() + (N - B) * D, a.p.y = rows.data(), a.p.x_stride = a.p.y_stride = D, a.p.B = B, a.p.N = N, a.p.D = D, a.p.own = OwnKind::offset;
  a.p.own_offset = N - B;
  a.p.wanted = wanted, a.p.exact = true, a.p.aligned = D % 4 == 0 && reinterpret_cast<uintptr_t>(rows.data()) % 16 == 0;
  a.r.knn = true, a.r.k = wanted;
  a.o.distances = distances.data(), a.o.indices = indices.data();
  a.plan.team_shift = kTeamShift, a.plan.teams = kTeams, a.plan.room = kRoom;
  a.plan.dense_rows = panel, a.plan.dense_references = stretch;
  a.s.state = state.data(), a.s.pairs = pairs.data(), a.s.nearest = nearest.data(), a.s.found = found.data();
  unsigned long long largest = bits_of(Real(few > 0 ? few : N));
  std::memcpy(state.data() + kLargestLow, &largest, sizeof largest);

  simt::Launch launch;
  launch.grid = grid, launch.resident = 0, launch.block = Stage::kThreads, launch.seed = seed;
  launch.shared_bytes = size_t(kControlBytes + std::max(DenseShape<Real, Stage::kDenseThreads>::kBytes,
                                                        kTeams * TeamShared<Real>::bytes(1, kRoom, D, false)));
  simt::launch(launch, [&] { dense_jobs(a); });

  for (int i = 0; i < B; ++i) {
    std::vector<Neighbour> all;
    for (int j = 0; j < N; ++j) {
      double d2 = 0;
      for (int c = 0; c < D; ++c) {
        const double v = double(Real(rows[size_t((N - B + i) * D + c)] - rows[size_t(j * D + c)]));
        d2 += v * v;
      }
      if (j != N - B + i) all.push_back({d2, j});
    }
    std::sort(all.begin(), all.end(), [](const Neighbour& one, const Neighbour& two) { return before(one, two); });
    for (int n = 0; n < wanted; ++n) {
      const size_t at = size_t(i * wanted + n), should = size_t(n);
      if (indices[at] == all[should].index && distances[at] == Real(std::sqrt(all[should].d2))) continue;
      std::fprintf(stderr, "%d x %d x %d in %d x %d rounds: neighbour %d of query %d is %d at %g, not %d at %g\n", B, N, D, panels,
                   stretches, n, i, int(indices[at]), double(distances[at]), all[should].index, std::sqrt(all[should].d2));
      return 1;
    }
  }
  return 0;
}

}  // namespace ldreg::cuda

int main(int, char** words) {
  using namespace ldreg::cuda;
  simt::options().stall_limit = 1000000;  // mistakes may end in a deadlock
  const uint64_t seed = std::strtoull(words[1], nullptr, 10);
  try {
    // Several panels and stretches, by two blocks; more slabs than are added up in float32; bins with more in them than a list
    // has room for; many blocks at few queries.
    return check(200, 300, 70, 7, 8, 128, 128, 2, seed) || check(20, 128, 552, 7, 8, 128, 128, 1, seed) ||
           check(40, 330, 1, 1, 20, 128, 384, 1, seed) || check(9, 300, 4, 0, 8, 128, 128, 2, seed) ||
           check(7, 300, 12, 7, 8, 128, 128, 4, seed);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
