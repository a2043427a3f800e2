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
  // `panels` panels in blocks of `block_panels`, each block against itself and all others. The blocks do not depend on the
  // number of threads, so neither do results.
  Tournament(int64_t panels, int64_t block_panels) : panels_(panels) {
    blocks_ = (panels + block_panels - 1) / block_panels;
    blocks_ = std::max<int64_t>(1, std::min(blocks_ + blocks_ % 2, panels / 2 * 2));
    rounds_ = blocks_, pairs_ = blocks_ + (blocks_ - 1) * (blocks_ / 2);
  }

  // The first `panels` panels against `others` that begin at panel `offset`, not among themselves.
  Tournament(int64_t panels, int64_t offset, int64_t others, int64_t block_panels)
      : panels_(panels), offset_(offset), others_(others) {
    rounds_ = (std::max(panels, others) + block_panels - 1) / block_panels;
    blocks_ = 2 * rounds_, pairs_ = rounds_ * rounds_;
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
      match(first(a), end(a) - first(a), first(b), end(b) - first(b), scratch);
    };
    parallel_items(pairs_, threads, control, [](void* f, int64_t t) { (*static_cast<decltype(item)*>(f))(t); }, &item);
  }

 private:
  struct Pair {
    int64_t a, b;
  };

  // How far every block is, and the pairs that may play now.
  class Board {
   public:
    explicit Board(const Tournament& all) : all_(all), rounds_(all.blocks_), ready_(all.blocks_) {
      for (int64_t b = 0; b < all.blocks_; ++b) rounds_[b] = 0;
      for (int64_t b = 0; b < all.blocks_; ++b)
        if (all.partner(b, 0) >= b) ready_[ready_count_++] = Pair{b, all.partner(b, 0)};
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
      if (round == all_.rounds_) return;
      const int64_t partner = all_.partner(block, round);
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

  bool two_sided() const { return others_ > 0; }

  int64_t first(int64_t block) const {
    if (!two_sided()) return panels_ * block / blocks_;
    return block < rounds_ ? panels_ * block / rounds_ : offset_ + others_ * (block - rounds_) / rounds_;
  }
  int64_t end(int64_t block) const { return two_sided() && block == rounds_ - 1 ? panels_ : first(block + 1); }

  // Whom a block meets in a round. Of one set: first itself; then those on the circle whose numbers add up to twice the
  // round's meet, and the one that is left over meets the last block, which is not on the circle.
  int64_t partner(int64_t block, int64_t round) const {
    if (two_sided())
      return block < rounds_ ? rounds_ + (block + round) % rounds_ : (block - rounds_ - round + rounds_) % rounds_;
    if (round == 0) return block;
    const int64_t circle = blocks_ - 1;
    if (block == circle) return round - 1;
    const int64_t other = (2 * (round - 1) - block + circle) % circle;
    return other == block ? circle : other;
  }

  int64_t panels_, offset_ = 0, others_ = 0;
  int64_t blocks_, rounds_, pairs_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
