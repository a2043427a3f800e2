// What becomes of a tile of cosines, [j][lane]: its pairs left out, its sums of exponentials or of softplus, and the weights
// that the gradient gives its rows. Rows are in the lanes, candidates are j; nothing here knows where a tile came from.
#pragma once

#include "exponentials.h"
#include "packed.h"

namespace ldreg {
inline namespace LDREG_ISA {

// Up to this scale exp(scale (c - 1)) is a normal number for every cosine, and so is what it is multiplied by: one shift
// does for all rows. Beyond it every row has its largest cosine.
constexpr float kOneShift = 30;

// Which pairs a row leaves out: those with the `views` rows of its own image.
class LeftOut {
 public:
  LeftOut(const PairsProblem& p, bool lanes_are_candidates)
      : lane_origin_(lanes_are_candidates ? p.own : 0), other_origin_(lanes_are_candidates ? 0 : p.own), rows_(p.rows),
        views_(p.own < 0 ? 0 : p.views) {}

  // Set those of tile [j][lane] that are of rows first_lane.. and others first_other.. to -inf.
  void mark(float* tile, int64_t first_lane, int lanes, int64_t first_other, int others) const {
    for (int view = 0; view < views_; ++view)
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t row = first_lane + lane - lane_origin_;
        if (row < 0 || row >= rows_) continue;
        int64_t other = row + view * (rows_ / 2);
        if (other >= rows_) other -= rows_;
        other += other_origin_ - first_other;
        if (other >= 0 && other < others) tile[other * kPanel + lane] = -std::numeric_limits<float>::infinity();
      }
  }

 private:
  int64_t lane_origin_, other_origin_, rows_;
  int views_;
};

// What multiplies a pair's exponential on behalf of one of its rows. Absent rows have share 0, and a top so high that
// their exponential is 0 as well.
struct Shares {
  explicit Shares(int64_t n) : share(n), top(n) { std::fill_n(share.get(), n, 0.0f), std::fill_n(top.get(), n, 4.0f); }
  Buffer<float> share, top;
};

// The functions of one problem's logits, on tiles.
class PairTile {
 public:
  explicit PairTile(const PairsProblem& p) : p_(p) {}
  bool one_shift() const { return p_.scale <= kOneShift; }

  // exp(scale (c - 1)): down[lane] += over j, across[j] += over the vectors of lanes.
  LDREG_HOT void add_both_ways(const float* tile, int others, double* down, float* across) const {
    const float k = p_.scale * kLog2E;
    Floats total[kVectors] = {};
    for (int j = 0; j < others; ++j) {
      Floats row = load(across + j * kLanes);
      for (int v = 0; v < kVectors; ++v) {
        const Floats e = exp2_of((load(tile + j * kPanel + v * kLanes) - 1.0f) * k);
        total[v] += e, row += e;
      }
      std::memcpy(across + j * kLanes, &row, sizeof row);
    }
    for (int v = 0; v < kVectors; ++v) add_to(down + v * kLanes, total[v]);
  }

  // sum[lane] += sum_j exp(scale (c - top)), after raising top to the tile's largest.
  LDREG_HOT void add_exponentials(const float* tile, int others, float* top, double* sum) const {
    const float k = p_.scale * kLog2E;
    for (int v = 0; v < kPanel; v += kLanes) {
      Floats high = load(top + v);
      if (!one_shift()) {
        const Floats before = high;
        for (int j = 0; j < others; ++j) {
          const Floats c = load(tile + j * kPanel + v);
          high = c > high ? c : high;
        }
        std::memcpy(top + v, &high, sizeof high);
        const Floats shrink = exp2_of((before - high) * k);
        for (int lane = 0; lane < kLanes; ++lane) sum[v + lane] *= shrink[lane];
      }
      Floats total = {};
      for (int j = 0; j < others; ++j) total += exp2_of((load(tile + j * kPanel + v) - high) * k);
      add_to(sum + v, total);
    }
  }

  // sum[lane] += the tile's values, sum[kPanel + lane] += its slopes.
  LDREG_HOT void add_softplus(const float* tile, int others, double* sum) const {
    for (int v = 0; v < kPanel; v += kLanes) {
      Floats value = {}, slope = {};
      for (int j = 0; j < others; ++j) {
        const Floats a = load(tile + j * kPanel + v) * p_.scale + p_.bias, y = exp_of_minus_magnitude(a);
        value += (a > 0.0f ? a : Floats{}) + log1p_of(y);
        slope += sigmoid_of(a, y);
      }
      add_to(sum + v, value), add_to(sum + kPanel + v, slope);
    }
  }

  // sum[lane] += the tile's numbers.
  void add_rows(const float* tile, int others, double* sum) const {
    for (int v = 0; v < kPanel; v += kLanes) {
      Floats total = {};
      for (int j = 0; j < others; ++j) total += load(tile + j * kPanel + v);
      add_to(sum + v, total);
    }
  }

  // The tile's cosines become weights.
  LDREG_HOT void weigh(float* tile, int others, const Shares& of_lanes, int64_t first_lane, const Shares& of_others,
                       int64_t first_other) const {
    const float k = p_.scale * kLog2E;
    for (int v = 0; v < kPanel; v += kLanes) {
      const Floats share = load(of_lanes.share.get() + first_lane + v), top = load(of_lanes.top.get() + first_lane + v);
      for (int j = 0; j < others; ++j) {
        const Floats c = load(tile + j * kPanel + v);
        const float other = of_others.share[first_other + j], other_top = of_others.top[first_other + j];
        Floats w;
        if (p_.softplus) {
          const Floats a = c * p_.scale + p_.bias;
          w = sigmoid_of(a, exp_of_minus_magnitude(a)) * (share + other);
        } else if (one_shift()) {
          w = exp2_of((c - 1.0f) * k) * (share + other);
        } else {
          w = exp2_of((c - top) * k) * share + exp2_of((c - other_top) * k) * other;
        }
        std::memcpy(tile + j * kPanel + v, &w, sizeof w);
      }
    }
  }

 private:
  const PairsProblem& p_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
