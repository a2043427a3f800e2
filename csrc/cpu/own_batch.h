// The rows of a batch among themselves: each pair of blocks is multiplied once and offered both ways.
//
// All rows are packed once and all lists are open at once, as far as kSymmetricBytes go. A larger batch is cut into equal
// shares, of which two are packed and open at a time: first each with itself, then with every later one (tournament.h);
// the lists of the others are put aside meanwhile, shortened to what may still be a neighbour. It evaluates nothing:
// finished lists are handed over a panel at a time.
#pragma once

#include "candidates.h"
#include "tournament.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int64_t kSymmetricBytes = 60 << 20;
constexpr int64_t kLeastShare = 1024;       // rows of a share: of smaller ones, packing would cost more than it saves
constexpr int kBlockPanels = 192 / kPanel;  // what meets
constexpr int kPairPanels = 48 / kPanel;    // and so much of the one as references at a time

template <class T, class Operand>
class OwnBatch {
 public:
  using Real = typename Compute<T>::Real;

  // `bounds`, `centre` and `scale` are of this operand format; lists are of `wanted` neighbours.
  OwnBatch(const Problem& problem, Control& control, const Features<T>& x, const Bounds& bounds, const Real* centre,
           Real scale, float gamma, int wanted, int64_t share)
      : problem_(problem), control_(control), x_(x), bounds_(bounds), centre_(centre), scale_(scale), rows_(x.rows()),
        share_(share), shares_((rows_ + share - 1) / share), kept_(kept(wanted)), panels_(problem.columns),
        ids_(rows_), saved_(shares_ > 1 ? rows_ : 0), saved_key_(shares_ > 1 ? rows_ * kept_ : 0),
        saved_index_(shares_ > 1 ? rows_ * kept_ : 0) {
    const int64_t lists = (shares_ > 1 ? 2 : 1) * share;
    panels_.reserve(lists / kPanel);
    candidates_.start(lists, wanted, Candidates::room_for(wanted, 0), gamma, problem.exact);
    for (int64_t i = 0; i < rows_; ++i) ids_[i] = int(i);
    for (int64_t i = 0; i < rows_ && shares_ > 1; ++i) saved_[i] = SavedList{0, 0, 0};
  }

  // How many rows to a share: all of them if they fit, else as many as fit twice beside the lists put aside; 0 if that is
  // too few, or the batch too small, to be worth it.
  static int64_t share_for(int64_t rows, int64_t columns, int wanted) {
    const int64_t bytes = 4 * steps_for(columns, Operand::per_step) + 8 * Candidates::room_for(wanted, 0);
    if (rows <= 4 * kPanel) return 0;
    if ((rows + kPanel) * bytes <= kSymmetricBytes) return whole_panels(rows);
    const int64_t aside = rows * int64_t(8 * kept(wanted) + sizeof(SavedList));
    const int64_t most = (kSymmetricBytes - aside) / (2 * bytes) / kPanel * kPanel;
    if (most < kLeastShare) return 0;
    const int64_t shares = (rows + most - 1) / most;
    return whole_panels((rows + shares - 1) / shares);
  }

  // finish(candidates, list, row, count): the lists from `list` on, of the rows from `row` on, are complete.
  template <class Finish>
  void search(Finish&& finish) {
    for (int64_t a = 0; a < shares_ && !control_.stopped(); ++a) {
      take_up(a, 0, a > 0);
      play(Tournament(panel_count(a), kBlockPanels), first(a), first(a));
      for (int64_t b = a + 1; b < shares_ && !control_.stopped(); ++b) {
        take_up(b, 1, a > 0);
        play(Tournament(panel_count(a), share_ / kPanel, panel_count(b), kBlockPanels), first(a), first(b) - share_);
        put_aside(b, 1);
      }
      auto panel = [&](int64_t p) {
        const int64_t row = first(a) + p * kPanel;
        finish(candidates_, p * kPanel, row, int(std::min<int64_t>(kPanel, end(a) - row)));
      };
      parallel(panel_count(a), panel);
    }
  }

 private:
  static int kept(int wanted) { return 2 * wanted + 32; }  // entries of a list put aside: more are an overflow
  static int64_t whole_panels(int64_t rows) { return (rows + kPanel - 1) / kPanel * kPanel; }

  int64_t first(int64_t share) const { return share * share_; }
  int64_t end(int64_t share) const { return std::min(rows_, (share + 1) * share_); }
  int64_t panel_count(int64_t share) const { return (end(share) - first(share) + kPanel - 1) / kPanel; }

  // A share goes to the panels and lists of one side (0 or 1); `begun` if it has lists put aside.
  void take_up(int64_t share, int64_t side, bool begun) {
    auto panel = [&](int64_t p) {
      const int64_t from = first(share) + p * kPanel, list = side * share_ + p * kPanel;
      const int count = int(std::min<int64_t>(kPanel, end(share) - from));
      panels_.pack(list / kPanel, x_, ids_.get() + from, count, centre_, scale_, bounds_.unit.get());
      for (int lane = 0; lane < kPanel; ++lane) {
        const int64_t i = from + lane;
        candidates_.close(list + lane);
        if (lane >= count || !x_.finite(i)) continue;
        candidates_.open(list + lane, bounds_.norm[i], bounds_.residual[i], problem_.self.of(i));
        if (begun) candidates_.restore(list + lane, saved_[i], saved_key_.get() + i * kept_, saved_index_.get() + i * kept_);
      }
    };
    parallel(panel_count(share), panel, 0.25 * double(end(share) - first(share)) * double(problem_.columns));
  }

  void put_aside(int64_t share, int64_t side) {
    auto panel = [&](int64_t p) {
      const int64_t from = first(share) + p * kPanel;
      for (int64_t i = from; i < std::min(end(share), from + kPanel); ++i)
        if (x_.finite(i))
          saved_[i] = candidates_.save(side * share_ + i - first(share), bounds_, kept_, saved_key_.get() + i * kept_,
                                       saved_index_.get() + i * kept_);
    };
    parallel(panel_count(share), panel);
  }

  // Panels are numbered as they lie; `a_row` and `b_row` lead from there to the rows of the batch.
  void play(const Tournament& tournament, int64_t a_row, int64_t b_row) {
    auto match = [&](int64_t a_first, int64_t a_count, int64_t b_first, int64_t b_count, Buffer<float>& products) {
      for (int64_t p = b_first; p < b_first + b_count; p += kPairPanels) {
        if (control_.stopped()) return;
        const int64_t width = std::min<int64_t>(kPairPanels, b_first + b_count - p), y_first = p * kPanel + b_row;
        const int offered = int(std::min(width * kPanel, rows_ - y_first)), padded = int(width) * kPanel;
        // A block meets itself in strips, each with the lanes from its own first on: the rest is symmetric.
        const int64_t from = a_first == b_first ? p : a_first, lanes_used = a_first + a_count - from;
        const int64_t own = a_first == b_first ? width : 0;  // panels of lanes that are these references
        panels_.multiply_panels(from, lanes_used, p, width, products.reserve(a_count * kPanel * padded));
        candidates_.offer_to_lanes(products.get(), lanes_used, offered, padded, from * kPanel, y_first, bounds_);
        candidates_.offer_to_rows(products.get() + own * padded * kPanel, lanes_used - own, offered, padded, p * kPanel,
                                  (from + own) * kPanel + a_row, bounds_);
      }
    };
    tournament.play(problem_.threads, control_, match);
  }

  template <class Body>
  void parallel(int64_t items, Body& body, double work = std::numeric_limits<double>::infinity()) {
    parallel_items(items, problem_.threads, control_, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body,
                   work);
  }

  const Problem& problem_;
  Control& control_;
  const Features<T>& x_;
  const Bounds& bounds_;
  const Real* centre_;
  Real scale_;
  int64_t rows_, share_, shares_;
  int kept_;
  Panels<T, Operand> panels_;
  Candidates candidates_;
  Buffer<int> ids_;
  Buffer<SavedList> saved_;
  Buffer<float> saved_key_;
  Buffer<int> saved_index_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
