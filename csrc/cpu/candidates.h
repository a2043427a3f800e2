// Which references may be among a query's k nearest: threshold, append, compact, with bounds that hold by construction.
//
// With rounded rows x^, y^ the tile gives q = |x^|^2 + |y^|^2 - 2 x^.y^, off by at most E = gamma (|x^|^2 + |y^|^2) from
// |x^ - y^|^2, and |x^ - y^| is within r_x + r_y of the true distance (r = residual of rounding). Hence
//   lower bound   d >= sqrt(q - E) - r_x - r_y        upper bound   d <= sqrt(q + E) + r_x + r_y.
// T, the upper bound of the k-th smallest q so far, bounds the k-th distance; a pair whose lower bound exceeds T cannot
// be a neighbour and is not kept. So every neighbour is among the candidates: there is no certificate left to fail. What
// can fail is the room for candidates (`overflowed`): such a row is searched again at higher precision.
// precision="fast" is the same with all bounds 0 and a few candidates more than k.
#pragma once

#include "select.h"
#include "tile.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr float kTiny = 1e-30f;  // products below 2^-126 are flushed
constexpr int kFastExtra = 16;

// Per-row bounds of one feature matrix in the tile's unit, padded to whole panels with rows that nothing admits.
struct Bounds {
  Buffer<float> norm;      // |x^|^2; kNever for rows with NaN or Inf
  Buffer<float> residual;  // r_x
  Buffer<float> slack;     // gamma |x^|^2 + r_x^2: a key's own share of its error
  Buffer<float> bias;      // norm - slack
  Buffer<float> unit;      // of the row's integers
};

// A list put aside with its threshold: its entries, two words each, lie elsewhere.
struct SavedList {
  float reach, limit;
  int count;  // -1: it overflowed
};

class Candidates {
 public:
  // Lists for `rows` queries of k neighbours each; gamma is the relative rounding bound of a key, `room` the length of a
  // list (`room_for`).
  void start(int64_t rows, int k, int room, float gamma, bool exact) {
    rows_ = (rows + kPanel - 1) / kPanel * kPanel;
    gamma_ = gamma, room_ = room;
    wanted_ = exact ? k : k + kFastExtra;
    key_.reserve(rows_ * room_), index_.reserve(rows_ * room_);
    for (Buffer<float>* b : {&norm_, &residual_, &reach_, &limit_}) b->reserve(rows_);
    for (Buffer<int>* b : {&count_, &trigger_, &self_}) b->reserve(rows_);
    overflowed_.reserve(rows_);
    for (int64_t i = 0; i < rows_; ++i) close(i, -1);
  }

  static int room_for(int k, int64_t extra) { return int((2 * k + 512 + extra + 15) / 16 * 16); }

  // List i belongs to a query with these bounds; `self` is its own row among the references, or -1.
  void open(int64_t i, float norm, float residual, int64_t self) {
    norm_[i] = norm, residual_[i] = residual, self_[i] = int(self);
    count_[i] = 0, trigger_[i] = std::min(room_, wanted_ + 32);
    set_threshold(i, 1e9f);
  }

  // products[panel][row][lane]: offer references y_first..y_first+rows to the lists first..first+panels*kPanel (the
  // lanes); `padded` is the number of rows between panels.
  LDREG_HOT void offer_to_lanes(const float* products, int64_t panels, int rows, int padded, int64_t first,
                                int64_t y_first, const Bounds& y) {
    for (int64_t p = 0; p < panels; ++p) {
      for (int r = 0; r < rows; ++r) {
        const float* dot = products + (p * padded + r) * kPanel;
        const float norm = y.norm[y_first + r], residual = y.residual[y_first + r], bias = y.bias[y_first + r];
        unsigned long long hits = 0;  // of the whole panel: one branch for all its lanes
        for (int v = 0; v < kPanel; v += kLanes) {
          const int64_t list = first + p * kPanel + v;
          const Floats key = bias - 2 * load(dot + v) - residual * load(&reach_[list]);
          hits |= static_cast<unsigned long long>(mask_less_equal(key, load(&limit_[list]))) << v;
        }
        for (; hits; hits &= hits - 1) {
          const int lane = __builtin_ctzll(hits);
          append(first + p * kPanel + lane, norm - 2 * dot[lane], int(y_first) + r, y);
        }
      }
    }
  }

  // The same tile the other way round: offer references y_first..y_first+panels*kPanel (the lanes) to the lists
  // first..first+rows (the rows).
  LDREG_HOT void offer_to_rows(const float* products, int64_t panels, int rows, int padded, int64_t first,
                               int64_t y_first, const Bounds& y) {
    for (int r = 0; r < rows; ++r) {
      const int64_t list = first + r;
      for (int64_t p = 0; p < panels; ++p) {
        const float* dot = products + (p * padded + r) * kPanel;
        const int64_t j = y_first + p * kPanel;
        unsigned long long hits = 0;
        for (int v = 0; v < kPanel; v += kLanes) {
          const Floats key = load(&y.bias[j + v]) - 2 * load(dot + v) - reach_[list] * load(&y.residual[j + v]);
          hits |= static_cast<unsigned long long>(mask_less_equal(key, limit_[list] - Floats{})) << v;
        }
        for (; hits; hits &= hits - 1) {
          const int lane = __builtin_ctzll(hits);
          append(list, y.norm[j + lane] - 2 * dot[lane], int(j) + lane, y);
        }
      }
    }
  }

  // Put list i aside: no more than `most` entries, of which it must not have more.
  SavedList save(int64_t i, const Bounds& y, int most, float* key, int* index) {
    compact(i, y);
    if (overflowed_[i] || count_[i] > most) return {0, 0, -1};
    std::copy_n(key_.get() + i * room_, count_[i], key);
    std::copy_n(index_.get() + i * room_, count_[i], index);
    return {reach_[i], limit_[i], count_[i]};
  }

  // And take it up again, where `open` has just been called.
  void restore(int64_t i, const SavedList& saved, const float* key, const int* index) {
    if (saved.count < 0) return overflow(i);
    reach_[i] = saved.reach, limit_[i] = saved.limit, count_[i] = saved.count;
    std::copy_n(key, saved.count, key_.get() + i * room_);
    std::copy_n(index, saved.count, index_.get() + i * room_);
    set_trigger(i);
  }

  // No query: list i admits nothing.
  void close(int64_t i) { close(i, -1); }

  bool overflowed(int64_t i) const { return overflowed_[i]; }
  int room() const { return room_; }

  // The candidates of list i with lower bounds on their distances, in the tile's unit. Returns how many.
  int finish(int64_t i, const Bounds& y, float* lower, int* index) {
    compact(i, y);
    const int64_t base = i * room_;
    int n = 0;
    for (int c = 0; c < count_[i]; ++c) {
      const int j = index_[base + c];
      if (j == self_[i]) continue;
      const float q = norm_[i] * (1 - gamma_) + key_[base + c] - gamma_ * y.norm[j] - kTiny;
      lower[n] = (q > 0 ? std::sqrt(q) : 0) - residual_[i] - y.residual[j];
      index[n++] = j;
    }
    return n;
  }

 private:
  // Self is appended like any other reference and dropped by `finish`: cheaper than asking at every append.
  int keep(int64_t i) const { return wanted_ + (self_[i] >= 0); }

  void append(int64_t i, float key, int j, const Bounds& y) {
    const int n = count_[i]++;
    key_[i * room_ + n] = key, index_[i * room_ + n] = j;
    if (n + 1 >= trigger_[i]) make_room(i, y);
  }

  __attribute__((noinline)) void make_room(int64_t i, const Bounds& y) {
    compact(i, y);
    if (count_[i] > room_ - 64) overflow(i);
    else set_trigger(i);
  }

  // When to compact next: after half as many again, so that thresholds fall early and passes stay few.
  void set_trigger(int64_t i) { trigger_[i] = std::min(room_, std::max(3 * count_[i] / 2, count_[i] + 48)); }

  void overflow(int64_t i) { close(i, self_[i]), overflowed_[i] = 1; }

  // No reference passes the filter of a closed list.
  void close(int64_t i, int self) {
    reach_[i] = 0, limit_[i] = -kNever, count_[i] = 0, trigger_[i] = room_;
    norm_[i] = residual_[i] = 0, self_[i] = self, overflowed_[i] = 0;
  }

  // A reference passes if its lower bound is at most t:  q - E <= (t + r_x + r_y)^2, sorted into what depends on the
  // query (limit, reach) and on the reference (bias, residual in `offer_to_lanes`).
  void set_threshold(int64_t i, float t) {
    const float s = t + residual_[i];
    reach_[i] = 2 * s;
    limit_[i] = s * s - norm_[i] * (1 - gamma_) + kTiny;
  }

  // Lower the threshold to the upper bound of the k-th smallest key, then drop what cannot be a neighbour any more.
  // Branch-free throughout: which way a key falls is a coin toss.
  void compact(int64_t i, const Bounds& y) {
    float* key = key_.get() + i * room_;
    int* index = index_.get() + i * room_;
    const int n = count_[i];
    if (n <= keep(i)) return;
    for (int c = n; c % kLanes != 0; ++c) key[c] = kNever * 1e6f, index[c] = 0;  // whole vectors; beyond any limit
    const float pivot = at_least(key, n, keep(i));
    Floats slacks = {}, residuals = {};  // the largest among those counted by the pivot
    for (int c = 0; c < n; c += kLanes) {
      const Ints counted = load(key + c) <= pivot;
      const Floats s = (Floats)((Ints)gather(y.slack.get(), index + c) & counted);
      const Floats r = (Floats)((Ints)gather(y.residual.get(), index + c) & counted);
      slacks = s > slacks ? s : slacks, residuals = r > residuals ? r : residuals;
    }
    float slack = 0, residual = 0;
    for (int l = 0; l < kLanes; ++l) slack = std::max(slack, slacks[l]), residual = std::max(residual, residuals[l]);
    const float q = norm_[i] * (1 + gamma_) + pivot + slack + kTiny;
    set_threshold(i, std::sqrt(std::max(q, 0.0f)) * (1 + 0x1p-22f) + residual_[i] + residual);
    const Floats limit = limit_[i] - Floats{};
    int kept = 0;
    for (int c = 0; c < n; c += kLanes) {
      const Floats k = load(key + c);
      const Floats lower =
          k - gather(y.slack.get(), index + c) - gather(y.residual.get(), index + c) * reach_[i];
      const unsigned keep = mask_less_equal(lower, limit);
      const Ints j = load_raw<Ints>(index + c);
      compress(key + kept, k, keep), compress(index + kept, j, keep);
      kept += __builtin_popcount(keep);
    }
    count_[i] = kept;
  }

  int64_t rows_ = 0;
  int wanted_ = 0, room_ = 0;
  float gamma_ = 0;
  Buffer<float> norm_, residual_, reach_, limit_, key_;
  Buffer<int> index_, count_, trigger_, self_;
  Buffer<uint8_t> overflowed_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
