// Checks of the queue of hits between products and lists (csrc/cuda/tile.h, tile_stage.h, tile_stage_hopper.h), and of the
// compaction behind it (threshold.h), on the machine of simt.h: features are small integers, so every key is exact, and every
// list has to be what plain arithmetic says, whatever the order of threads. `hits mma SEED`, `hits wgmma SEED`: what is wrong
// goes to stderr. kernels/test_cuda_tiles.py also compiles it with mistakes, which have to be found.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#if defined(TEST_HOPPER)
#include "tile_stage_hopper.h"
#else
#include "mainloop_mma.h"
#include "tile_stage.h"
#endif
#include "control.h"
#include "tensor_map.h"

namespace ldreg::cuda {

#if defined(TEST_HOPPER)
using Stage = HopperTileStage;
#else
using Stage = TileStage<MmaLoop>;
#endif

constexpr int kRows = 300, kColumns = 64, kBlocks = 3, kWanted = 8;  // rows are queries and references

// Blocks of a launch work off the tiles of one step, as in ldreg_kernel.h; the last one looks at the lists of each block of
// queries as soon as its tiles are counted as done, and compacts them.
void tiles_and_lists(const Arguments& given, Cursor at, unsigned* counts, Candidate* lists) {
  Control& control = *reinterpret_cast<Control*>(shared_memory());
  char* memory = shared_memory() + kControlBytes;
  for (int i = thread_id(); i < int(sizeof(Arguments) / sizeof(int)); i += Stage::kThreads)
    reinterpret_cast<int*>(shared_memory() + kArgumentsAt)[i] = reinterpret_cast<const int*>(&given)[i];
  __syncthreads();
  const Arguments& a = arguments();
  const Schedule schedule(a);
  if (blockIdx.x + 1 == gridDim.x) {
    for (int block = 0; block < kBlocks; ++block) {
      if (thread_id() == 0) wait_for(a.s.arrivals + block, schedule.meetings(at, block));
      __syncthreads();
      const int first = block * kBlock, last = smaller(first + kBlock, kRows);
      for (int slot = first + thread_id(); slot < last; slot += Stage::kThreads) {
        counts[slot] = at.step == 0 ? schedule.held(at) * kBlock : a.s.count[slot];
        std::copy_n(a.s.list + int64_t(slot) * a.plan.cap, a.plan.cap, lists + int64_t(slot) * a.plan.cap);
      }
      __syncthreads();
      char* room = memory + warp_id() * compact_bytes(a.plan.cap);
      for (int slot = first + warp_id(); slot < last; slot += Stage::kThreads / kWarp) compact_list(at, true, slot, room);
    }
    return;
  }
  if (thread_id() == 0) control.at = at;
  for (bool next = true;; next = !Stage::kLooksAhead) {
    __syncthreads();
    if (next && thread_id() == 0) {
      control.ticket = atomicAdd(a.s.state + kTicket, 1u);
      schedule.seek(control.at, control.ticket);
    }
    __syncthreads();
    if (control.at.job != Job::tiles) return;
    Stage::run(control.at, control.ticket, control.tile, memory, given.maps);
  }
}

// ---------------------------------------------------------------- checks

struct Rows {
  std::vector<float> values;
  std::vector<__half> halves;
  std::vector<Packed> packed;
  __half* data;  // 128-byte aligned, whole blocks
  Rows() : values(size_t(kBlocks * kBlock * kColumns)), halves(values.size() + 64), packed(size_t(kRows)) {
    data = halves.data();
    while (reinterpret_cast<uintptr_t>(data) % 128) ++data;
    std::mt19937 random(5);
    for (int i = 0; i < kBlocks * kBlock * kColumns; ++i) {
      const float v = i < kRows * kColumns ? float(int(random() % 5) - 2) : 0.0f;
      values[size_t(i)] = v, data[i] = __float2half(v);
    }
    for (int i = 0; i < kRows; ++i) packed[size_t(i)] = {dot(i, i), 0.0f};
  }
  float dot(int i, int j) const {
    float sum = 0;
    for (int c = 0; c < kColumns; ++c) sum += values[size_t(i * kColumns + c)] * values[size_t(j * kColumns + c)];
    return sum;
  }
  int key(int query, int reference) const { return sortable(dot(reference, reference) - 2 * dot(query, reference)); }
};

using Found = std::vector<std::pair<int, int>>;  // key and position, in order

// What a list holds, without the places of no candidate. In order, so that whatever is there twice stands side by side.
Found candidates(const Candidate* list, int n) {
  Found found;
  for (int c = 0; c < n; ++c)
    if (list[c].key != kNever) found.emplace_back(list[c].key, list[c].position);
  std::sort(found.begin(), found.end());
  return found;
}

int fault(const char* what, float limit, int cap, int query, size_t is, size_t should) {
  std::fprintf(stderr, "%s: limit %g, room for %d: query %d has %zu candidates, not %zu\n", what, double(limit), cap, query, is,
               should);
  return 1;
}

// One step of all tiles, the first of all or one with this limit; lists with room for `cap`.
int check(const Rows& rows, bool first_step, float limit, int cap, unsigned grid, uint64_t seed) {
  std::vector<unsigned> state(kFixedWords), arrivals(kBlocks), ready(kBlocks), count(kRows), counts(kRows);
  std::vector<float> limits(kRows, limit), reach(kRows, 0.0f);
  std::vector<Candidate> list(size_t((kBlocks * kBlock + 1) * cap), {kNever, 0}), lists(list.size());  // room for mistakes
  std::vector<Packed> packed = rows.packed;
  std::vector<int> failed(kRows);

  Arguments a{};
  a.p.B = a.p.N = kRows, a.p.D = kColumns, a.p.own = OwnKind::offset, a.p.wanted = kWanted, a.p.exact = a.p.same = true;
  a.plan.tiles = a.plan.symmetric = a.plan.once = true, a.plan.width = Stage::kWidth, a.plan.run = 1;
  a.plan.columns = kColumns, a.plan.cap = cap, a.plan.panel = kRows, a.plan.panels = 1, a.plan.steps = 1;
  a.plan.first = a.plan.most = kBlocks, a.plan.growth = 2, a.plan.stride = a.plan.back = 1;
  a.plan.teams = a.plan.query_share = 1;
  a.s.state = state.data(), a.s.arrivals = arrivals.data(), a.s.ready = ready.data(), a.s.x = a.s.y = rows.data;
  a.s.x_packed = a.s.y_packed = packed.data(), a.s.list = list.data(), a.s.count = count.data(), a.s.limit = limits.data();
  a.s.reach = reach.data(), a.s.failed = failed.data();
  const CUtensorMap map = tensor_map(rows.data, kBlocks * kBlock, kColumns);
  static_assert(sizeof(CUtensorMap) <= sizeof(TensorMap));
  for (TensorMap& place : a.maps) std::memcpy(&place, &map, sizeof map);

  Cursor at;
  at.job = Job::tiles, at.step = first_step ? 0 : 1, at.meets = meetings_of(a.plan, kBlocks);
  at.count = unsigned(kBlocks * Schedule(a).runs(at));

  simt::Launch launch;
  launch.grid = grid + 1, launch.resident = 0, launch.block = Stage::kThreads, launch.seed = seed;
  launch.shared_bytes = size_t(std::max(Stage::kSharedBytes, Stage::kThreads / kWarp * compact_bytes(cap)) + kControlBytes);
  simt::launch(launch, [&] { tiles_and_lists(a, at, counts.data(), lists.data()); });

  for (int query = 0; query < kRows; ++query) {
    Found all, others;  // that pass; the same without the query itself
    for (int j = 0; j < kRows; ++j) {
      const int key = rows.key(query, j);
      if (!first_step && from_sortable(key) > limit) continue;
      all.emplace_back(key, j);
      if (j != query) others.emplace_back(key, j);
    }
    std::sort(all.begin(), all.end()), std::sort(others.begin(), others.end());
    const size_t n = size_t(query), listed = first_step ? size_t(kBlocks * kBlock) : all.size();
    if (counts[n] != listed) return fault("counted", limit, cap, query, counts[n], listed);
    const bool fits = listed <= size_t(cap);
    const Found found = candidates(lists.data() + n * size_t(cap), int(std::min(listed, size_t(cap))));
    const bool once = std::adjacent_find(found.begin(), found.end()) == found.end();
    const bool right = std::includes(all.begin(), all.end(), found.begin(), found.end());
    if (!once || !right || found.size() != (fits ? all.size() : size_t(cap)))
      return fault(!once ? "twice" : !right ? "wrong" : "lost", limit, cap, query, found.size(), all.size());
    if (!fits) {
      if (count[n] <= unsigned(cap)) return fault("not failed", limit, cap, query, count[n], listed);
      continue;
    }
    if (count[n] > unsigned(cap)) return fault("failed", limit, cap, query, count[n], listed);
    // Compacted: the nearest, and whatever else is not beyond a threshold near the last of them.
    const Found kept = candidates(list.data() + n * size_t(cap), int(count[n]));
    const float last = from_sortable(others[std::min(others.size(), size_t(kWanted)) - 1].first);
    const auto enough = std::count_if(others.begin(), others.end(), [&](auto& c) { return from_sortable(c.first) <= last; });
    if (kept.size() < size_t(enough) || kept.size() > others.size() || !std::equal(kept.begin(), kept.end(), others.begin()))
      return fault("compacted", limit, cap, query, kept.size(), size_t(enough));
  }
  return 0;
}

}  // namespace ldreg::cuda

int main(int, char** words) {
  using namespace ldreg::cuda;
  simt::options().stall_limit = 1000000;  // mistakes may end in a deadlock
  const uint64_t seed = std::strtoull(words[1], nullptr, 10);
  try {
    const Rows rows;
    // The first step; few hits; a flood of them, several queues full, for one block and for two; and lists without the room.
    return check(rows, true, 0, 384, 1, seed) || check(rows, false, 85, 384, 1, seed) || check(rows, false, 140, 384, 1, seed) ||
           check(rows, false, 125, 128, 2, seed);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
