// Every pair of blocks meets exactly once, no block in two places at a time, in an order that never varies.
//
// Round robin by the circle method: in each round every block has one partner, so the pairs of a round touch disjoint
// rows and may run at once without locks. A pair waits only for the earlier pairs of its own two blocks. Each list
// therefore sees its candidates in one order whatever the timing of threads: two runs agree bit for bit.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "parallel.h"
#include "simd.h"

namespace ldreg {
inline namespace LDREG_ISA {

class Tournament {
 public:
  // `panels` panels in blocks of `block_panels`. The blocks do not depend on the number of threads, so neither do results.
  Tournament(int64_t panels, int64_t block_panels) : panels_(panels) {
    blocks_ = (panels + block_panels - 1) / block_panels;
    blocks_ = std::max<int64_t>(1, std::min(blocks_ + blocks_ % 2, panels / 2 * 2));
  }

  // match(a_first, a_count, b_first, b_count, scratch) for all pairs of panel ranges a <= b, a = b included.
  template <class Match>
  void play(int threads, Control& control, Match& match) const {
    Buffer<std::atomic<int64_t>> played(blocks_);
    for (int64_t b = 0; b < blocks_; ++b) new (&played[b]) std::atomic<int64_t>(0);
    auto item = [&](int64_t t) {
      const int64_t round = t < blocks_ ? 0 : (t - blocks_) / (blocks_ / 2) + 1;
      const auto [a, b] = t < blocks_ ? Pair{t, t} : pair(round - 1, (t - blocks_) % (blocks_ / 2));
      while (played[a].load() < round || played[b].load() < round) {
        if (control.stopped()) return;
        std::this_thread::yield();
      }
      struct Done {  // also when `match` throws: nobody must wait for ever
        std::atomic<int64_t>&a, &b;
        ~Done() { ++a, void(&a != &b && ++b); }
      } done{played[a], played[b]};
      Buffer<float> scratch;
      match(first(a), first(a + 1) - first(a), first(b), first(b + 1) - first(b), scratch);
    };
    const int64_t items = blocks_ + (blocks_ - 1) * (blocks_ / 2);
    parallel_items(items, threads, control, [](void* f, int64_t t) { (*static_cast<decltype(item)*>(f))(t); }, &item);
  }

 private:
  struct Pair {
    int64_t a, b;
  };

  int64_t first(int64_t block) const { return panels_ * block / blocks_; }

  Pair pair(int64_t round, int64_t i) const {
    const int64_t circle = blocks_ - 1;
    if (i == 0) return {round, circle};
    const int64_t a = (round + i) % circle, b = (round - i + circle) % circle;
    return {std::min(a, b), std::max(a, b)};
  }

  int64_t panels_, blocks_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
