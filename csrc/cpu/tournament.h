// Every pair of blocks meets exactly once, no block in two places at a time, in an order that never varies.
//
// Round robin by the circle method: in each round every block has one partner, so the pairs of a round touch disjoint
// rows and may run at once without locks. A pair waits only for the earlier pairs of its own two blocks: it becomes ready
// when the second of them has come so far, and whoever is free takes the pair that has been ready longest. Each list
// therefore sees its candidates in one order whatever the timing of threads: two runs agree bit for bit.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>

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
    Board board(*this);
    auto item = [&](int64_t) {
      Pair pair;
      if (!board.take(&pair, control)) return;
      struct Done {  // also when `match` throws: nobody must wait for ever
        Board& board;
        Pair pair;
        ~Done() { board.played(pair); }
      } done{board, pair};
      Buffer<float> scratch;
      const auto [a, b] = pair;
      match(first(a), first(a + 1) - first(a), first(b), first(b + 1) - first(b), scratch);
    };
    const int64_t items = blocks_ + (blocks_ - 1) * (blocks_ / 2);
    parallel_items(items, threads, control, [](void* f, int64_t t) { (*static_cast<decltype(item)*>(f))(t); }, &item);
  }

 private:
  struct Pair {
    int64_t a, b;
  };

  // How far every block is, and the pairs that may play now. A block first meets itself.
  class Board {
   public:
    explicit Board(const Tournament& all) : all_(all), rounds_(all.blocks_), ready_(all.blocks_) {
      for (int64_t b = 0; b < all.blocks_; ++b) rounds_[b] = 0, ready_[b] = Pair{b, b};
      ready_count_ = all.blocks_;
    }

    // Waits while all pairs that remain wait for others; false if the call was stopped meanwhile.
    bool take(Pair* pair, Control& control) {
      std::unique_lock<std::mutex> lock(mutex_);
      while (ready_count_ == 0) {
        more_.wait_for(lock, std::chrono::milliseconds(50));
        lock.unlock();
        if (control.stopped()) return false;
        lock.lock();
      }
      *pair = ready_[oldest_];
      oldest_ = (oldest_ + 1) % all_.blocks_, --ready_count_;
      return true;
    }

    void played(Pair pair) {
      std::lock_guard<std::mutex> lock(mutex_);
      ++rounds_[pair.a];
      if (pair.b != pair.a) ++rounds_[pair.b], admit_next(pair.b);
      admit_next(pair.a);
    }

   private:
    void admit_next(int64_t block) {
      const int64_t round = rounds_[block];
      if (round == all_.blocks_) return;
      const int64_t partner = all_.partner(block, round - 1);
      if (rounds_[partner] != round) return;
      // Never more ready pairs than blocks: no block is in two of them.
      ready_[(oldest_ + ready_count_++) % all_.blocks_] = Pair{std::min(block, partner), std::max(block, partner)};
      more_.notify_one();
    }

    const Tournament& all_;
    std::mutex mutex_;
    std::condition_variable more_;
    Buffer<int64_t> rounds_;  // that each block has played
    Buffer<Pair> ready_;      // a ring of pairs, oldest first
    int64_t oldest_ = 0, ready_count_ = 0;
  };

  int64_t first(int64_t block) const { return panels_ * block / blocks_; }

  // Whom a block meets in a round: those on the circle whose numbers add up to twice the round's, and the one that is
  // left over meets the last block, which is not on the circle.
  int64_t partner(int64_t block, int64_t round) const {
    const int64_t circle = blocks_ - 1;
    if (block == circle) return round;
    const int64_t other = (2 * round - block + circle) % circle;
    return other == block ? circle : other;
  }

  int64_t panels_, blocks_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
