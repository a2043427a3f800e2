// Sums over all pairs of unit rows and candidates, and their gradients, without the matrix of logits: a tile of cosines is
// made, used while it is in L1, and made again for the gradient.
//
//     without bias   value_i = ln sum_j exp(scale c_ij)        as scale top_i + ln total_i
//     with bias      value_i = sum_j ln(1 + exp(scale c_ij + bias)),   slope_i its derivative by bias
//     gradient       sum_j w_ij y_j,  w_ij = by_value_i d value_i / d (scale c_ij)
//
// Rows are in the lanes and own their sums: candidates come in the same order whatever the number of threads, so results
// are the same bits. Where rows are the candidates, c_ij is symmetric and row i's gradient, sum_j (w_ij + w_ji) y_j, is
// its own affair too.
//
// There too, every pair of rows meets once for the sums, if one shift does for all: a tile is summed by rows and by columns,
// and each sum goes to a place of its own, from where they are added in order.
//
// Memory: the packed rows, kParts floats a row where pairs meet once, and kThreadFloats a thread.
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

class PairSums {
 public:
  PairSums(const PairsProblem& p, Control& control) : p_(p), control_(control), x_(p.columns), y_(p.columns) {
    x_.pack(p.x, p.rows, p.x_stride, p.threads, control);
    if (!p.same) y_.pack(p.y, p.candidates, p.y_stride, p.threads, control);
  }

  void sums(float* state) {
    if (p_.same && one_shift() && !p_.softplus) return sums_of_batch(state);
    const LeftOut left_out(p_, false);
    auto block = [&](int64_t first, int64_t last) {
      const int64_t panels = last - first;
      Buffer<float> tile(kPanel * kPanel), top(panels * kPanel);
      Buffer<double> sum(panels * 2 * kPanel);  // of every panel: totals, or slopes and values
      std::fill_n(sum.get(), panels * 2 * kPanel, 0.0);
      std::fill_n(top.get(), panels * kPanel, one_shift() ? 1.0f : kBelowAll);
      meet(x_, first, last, candidates(), left_out, tile.get(), [&](int64_t p, int64_t, int others) {
        double* own = sum.get() + (p - first) * 2 * kPanel;
        if (p_.softplus) add_softplus(tile.get(), others, own);
        else add_exponentials(tile.get(), others, top.get() + (p - first) * kPanel, own);
      });
      for (int64_t p = first; p < last; ++p)
        for (int lane = 0; lane < x_.count(p); ++lane) {
          const int64_t i = p * kPanel + lane;
          const double* own = sum.get() + (p - first) * 2 * kPanel + lane;
          state[i] = p_.softplus ? float(own[kPanel]) : top[(p - first) * kPanel + lane];
          state[p_.rows + i] = float(own[0]);
        }
    };
    in_blocks(x_, 0, block);
  }

  // by_x [M, P] (of both roles where rows are the candidates) and by_y [N, P]; null where not wanted.
  void gradients(const float* state, const float* by_value, float* by_x, float* by_y) {
    const PackedRows& y = candidates();
    Shares of_rows(x_.panels() * kPanel), of_none(std::max(x_.panels(), y.panels()) * kPanel);
    for (int64_t i = 0; i < p_.rows; ++i) {
      if (p_.softplus) of_rows.share[i] = by_value[i];
      else if (state[p_.rows + i] != 0) of_rows.share[i] = by_value[i] / state[p_.rows + i], of_rows.top[i] = state[i];
    }
    if (by_x) gradient(x_, y, LeftOut(p_, false), of_rows, p_.same ? of_rows : of_none, by_x);
    if (by_y) gradient(y, x_, LeftOut(p_, true), of_none, of_rows, by_y);
  }

 private:
  static constexpr float kBelowAll = -2;  // no cosine is
  static constexpr int64_t kThreadFloats = 1 << 16, kChunkFloats = 1 << 15;

  // What multiplies a pair's exponential on behalf of one of its rows. Absent rows have share 0, and a top so high that
  // their exponential is 0 as well.
  struct Shares {
    explicit Shares(int64_t n) : share(n), top(n) { std::fill_n(share.get(), n, 0.0f), std::fill_n(top.get(), n, 4.0f); }
    Buffer<float> share, top;
  };

  static constexpr int64_t kParts = 64;

  // total_i of a batch that meets itself: rows in kParts parts, of which each pair meets once.
  void sums_of_batch(float* state) {
    const int64_t size = (x_.panels() + kParts - 1) / kParts, parts = (x_.panels() + size - 1) / size;
    const int64_t padded = x_.panels() * kPanel;
    Buffer<float> partial(parts * padded);  // [b][i]: what part b adds to row i
    const LeftOut left_out(p_, false);
    auto pair = [&](int64_t item) {
      int64_t a = 0;  // item is one of 0..parts(parts + 1) / 2: (0, 0), (0, 1), (1, 1), (0, 2), ...
      while ((a + 1) * (a + 2) / 2 <= item) ++a;
      const int64_t b = item - a * (a + 1) / 2;
      if (!control_.stopped()) meet_once(a * size, b * size, size, left_out, partial.get() + b * padded,
                                         partial.get() + a * padded);
    };
    parallel_items(parts * (parts + 1) / 2, p_.threads, control_,
                   [](void* p, int64_t item) { (*static_cast<decltype(pair)*>(p))(item); }, &pair);
    for (int64_t i = 0; i < p_.rows; ++i) {
      double total = 0;
      for (int64_t b = 0; b < parts; ++b) total += partial[b * padded + i];
      state[i] = 1, state[p_.rows + i] = float(total);
    }
  }

  // Panels a..a+size with b..b+size: sums over b's rows to of_a, and over a's to of_b unless a is b.
  void meet_once(int64_t a, int64_t b, int64_t size, const LeftOut& left_out, float* of_a, float* of_b) const {
    const int64_t a_last = std::min(x_.panels(), a + size), b_last = std::min(x_.panels(), b + size);
    Buffer<float> tile(kPanel * kPanel), across(kPanel * kLanes);
    Buffer<double> down((a_last - a) * kPanel);
    std::fill_n(down.get(), (a_last - a) * kPanel, 0.0);
    for (int64_t q = b; q < b_last; ++q) {
      std::fill_n(across.get(), kPanel * kLanes, 0.0f);
      for (int64_t p = a; p < a_last; ++p) {
        x_.inner(p, x_, q, tile.get());
        left_out.mark(tile.get(), p * kPanel, x_.count(p), q * kPanel, x_.count(q));
        for (int lane = x_.count(p); lane < kPanel; ++lane)  // behind the last row
          for (int j = 0; j < kPanel; ++j) tile[j * kPanel + lane] = -std::numeric_limits<float>::infinity();
        add_both_ways(tile.get(), x_.count(q), down.get() + (p - a) * kPanel, across.get());
      }
      if (a == b) continue;
      for (int j = 0; j < kPanel; ++j) of_b[q * kPanel + j] = float(sum(load(across.get() + j * kLanes)));
    }
    for (int64_t i = 0; i < (a_last - a) * kPanel; ++i) of_a[a * kPanel + i] = float(down[i]);
  }

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

  const PackedRows& candidates() const { return p_.same ? x_ : y_; }
  bool one_shift() const { return p_.scale <= kOneShift; }

  // body(first, last) for blocks of panels of `rows`; a block takes `held` floats for each of its rows.
  template <class Body>
  void in_blocks(const PackedRows& rows, int64_t held, Body&& body) {
    const int64_t most = std::max<int64_t>(1, std::min<int64_t>(8, kThreadFloats / (1 + held * kPanel)));
    const int64_t size = std::max<int64_t>(1, std::min(most, rows.panels() / (4 * p_.threads)));
    auto item = [&](int64_t b) {
      if (!control_.stopped()) body(b * size, std::min(rows.panels(), (b + 1) * size));
    };
    parallel_items((rows.panels() + size - 1) / size, p_.threads, control_,
                   [](void* i, int64_t b) { (*static_cast<decltype(item)*>(i))(b); }, &item);
  }

  // use(p, b, rows of b) with the cosines of panels first..last of `lanes` and every panel b of `others` in `tile`.
  template <class Use>
  void meet(const PackedRows& lanes, int64_t first, int64_t last, const PackedRows& others, const LeftOut& left_out,
            float* tile, Use&& use) {
    const int64_t chunk = std::max<int64_t>(1, kChunkFloats / (others.steps() * kPanel));  // panels that stay in L2
    for (int64_t from = 0; from < others.panels() && !control_.stopped(); from += chunk)
      for (int64_t p = first; p < last; ++p)
        for (int64_t b = from; b < std::min(others.panels(), from + chunk); ++b) {
          lanes.inner(p, others, b, tile);
          left_out.mark(tile, p * kPanel, lanes.count(p), b * kPanel, others.count(b));
          use(p, b, others.count(b));
        }
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

  void gradient(const PackedRows& lanes, const PackedRows& others, const LeftOut& left_out, const Shares& of_lanes,
                const Shares& of_others, float* by_lanes) {
    const int64_t held = lanes.steps();
    auto block = [&](int64_t first, int64_t last) {
      Buffer<float> tile(kPanel * kPanel), out((last - first) * held * kPanel);
      meet(lanes, first, last, others, left_out, tile.get(), [&](int64_t p, int64_t b, int count) {
        weigh(tile.get(), count, of_lanes, p * kPanel, of_others, b * kPanel);
        others.combine(tile.get(), b, b == 0, out.get() + (p - first) * held * kPanel);
      });
      if (control_.stopped()) return;
      for (int64_t p = first; p < last; ++p) lanes.unpack(out.get() + (p - first) * held * kPanel, p, by_lanes);
    };
    in_blocks(lanes, held, block);
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

  const PairsProblem& p_;
  Control& control_;
  PackedRows x_, y_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
