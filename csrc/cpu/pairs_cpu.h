// Sums over all pairs of unit rows and candidates, and their gradients, without the matrix of logits: a tile of cosines is
// made, used while it is in L1, and made again for the gradient.
//
//     without bias   value_i = ln sum_j exp(scale c_ij)        as scale top_i + ln total_i
//     with bias      value_i = sum_j ln(1 + exp(scale c_ij + bias)),   slope_i its derivative by bias
//     gradient       sum_j w_ij y_j,  w_ij = by_value_i d value_i / d (scale c_ij)
//
// Rows are in the lanes and own their sums: what is added, and in which order, depends on the problem and not on threads, so
// results are the same bits. Where rows are the candidates, c_ij is symmetric and row i's gradient, sum_j (w_ij + w_ji) y_j, is
// its own affair too.
//
// There too, every pair of rows meets once for the sums, if one shift does for all: a tile is summed by rows and by columns,
// and each sum goes to a place of its own, from where they are added in order.
//
// Memory: the packed rows, kParts floats a row where pairs meet once, kHeldFloats, and kThreadFloats a thread (or
// the gradient of one panel, if that is more).
#pragma once

#include "pair_tile.h"

namespace ldreg {
inline namespace LDREG_ISA {

class PairSums {
 public:
  PairSums(const PairsProblem& p, Control& control) : p_(p), control_(control), tile_(p), x_(p.columns), y_(p.columns) {
    x_.pack(p.x, p.rows, p.x_stride, p.threads, control);
    if (!p.same) y_.pack(p.y, p.candidates, p.y_stride, p.threads, control);
  }

  void sums(float* state) {
    if (p_.same && tile_.one_shift() && !p_.softplus) return sums_of_batch(state);
    const LeftOut left_out(p_, false);
    const Split split(x_, candidates(), 0);
    const int64_t padded = x_.panels() * kPanel;
    Buffer<float> top(split.segments * padded), total(split.segments * padded);  // of every segment; with a bias slopes, values
    in_parts(split, x_, candidates(), [&](const Part& part) {
      const int64_t panels = part.last - part.first, place = part.segment * padded + part.first * kPanel;
      Buffer<float> tile(kPanel * kPanel);
      Buffer<double> sum(panels * 2 * kPanel);
      float* high = top.get() + place;
      std::fill_n(sum.get(), panels * 2 * kPanel, 0.0);
      std::fill_n(high, panels * kPanel, tile_.one_shift() ? 1.0f : kBelowAll);
      meet(part, x_, candidates(), left_out, tile.get(), [&](int64_t p, int64_t, int others) {
        double* own = sum.get() + p * 2 * kPanel;
        if (p_.softplus) tile_.add_softplus(tile.get(), others, own);
        else tile_.add_exponentials(tile.get(), others, high + p * kPanel, own);
      });
      for (int64_t i = 0; i < panels * kPanel; ++i) {
        const double* own = sum.get() + i / kPanel * 2 * kPanel + i % kPanel;
        total[place + i] = float(own[0]);
        if (p_.softplus) high[i] = float(own[kPanel]);
      }
    });
    for (int64_t i = 0; i < p_.rows; ++i) {
      float first = 0;
      double second = 0;
      for (int64_t s = 0; s < split.segments; ++s)
        first = p_.softplus ? first + top[s * padded + i] : s == 0 ? top[i] : std::max(first, top[s * padded + i]);
      for (int64_t s = 0; s < split.segments; ++s) {
        const double fell = p_.softplus ? 0 : double(p_.scale) * (top[s * padded + i] - first);
        second += total[s * padded + i] * std::exp(fell);
      }
      state[i] = first, state[p_.rows + i] = float(second);
    }
  }

  // The sums, and by_x [M, P] for by_value = 1: in one pass where one shift does for all rows.
  void sums_and_gradient(float* state, float* by_x) {
    const int64_t padded = x_.panels() * kPanel;
    if (!tile_.one_shift() || p_.softplus || p_.same) {
      sums(state);
      Buffer<float> ones(padded);
      std::fill_n(ones.get(), padded, 1.0f);
      return gradients(state, ones.get(), by_x, nullptr);
    }
    Shares of_rows(padded), of_none(candidates().panels() * kPanel);
    Buffer<double> total(padded);
    std::fill_n(of_rows.share.get(), padded, 1.0f);
    gradient(x_, candidates(), LeftOut(p_, false), of_rows, of_none, by_x, total.get());
    for (int64_t i = 0; i < p_.rows; ++i) {
      state[i] = 1, state[p_.rows + i] = float(total[i]);
      const float share = total[i] == 0 ? 0 : float(1 / total[i]);
      for (int64_t c = 0; c < p_.columns; ++c) by_x[i * p_.columns + c] *= share;
    }
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
  static constexpr int64_t kThreadFloats = 1 << 16, kChunkFloats = 1 << 15, kHeldFloats = 1 << 22;
  static constexpr int64_t kItems = 64, kParts = 64;

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
        tile_.add_both_ways(tile.get(), x_.count(q), down.get() + (p - a) * kPanel, across.get());
      }
      if (a == b) continue;
      for (int j = 0; j < kPanel; ++j) of_b[q * kPanel + j] = float(sum(load(across.get() + j * kLanes)));
    }
    for (int64_t i = 0; i < (a_last - a) * kPanel; ++i) of_a[a * kPanel + i] = float(down[i]);
  }

  const PackedRows& candidates() const { return p_.same ? x_ : y_; }

  // Rows go in blocks of panels, and candidates in as many segments as make kItems items, so that few rows keep all threads
  // at work too, and read the candidates once. It depends on the problem alone.
  struct Split {
    // `held`: floats that are kept of every row for every segment.
    Split(const PackedRows& lanes, const PackedRows& others, int64_t held) {
      size = std::max<int64_t>(1, std::min<int64_t>(8, kThreadFloats / (1 + held * kPanel)));
      blocks = (lanes.panels() + size - 1) / size;
      const int64_t most = held == 0 ? kItems : kHeldFloats / (held * lanes.rows());
      segments = std::max<int64_t>(1, std::min({most, (kItems + blocks - 1) / blocks, others.panels()}));
      span = (others.panels() + segments - 1) / segments;
      segments = (others.panels() + span - 1) / span;
    }
    int64_t size, blocks, segments, span;
  };

  // Panels first..last of the rows with panels from..to of the candidates.
  struct Part {
    int64_t first, last, segment, from, to;
  };

  template <class Body>
  void in_parts(const Split& split, const PackedRows& lanes, const PackedRows& others, Body&& body) {
    auto item = [&](int64_t n) {
      const int64_t block = n / split.segments * split.size, segment = n % split.segments, from = segment * split.span;
      if (control_.stopped()) return;
      body(Part{block, std::min(lanes.panels(), block + split.size), segment, from,
                std::min(others.panels(), from + split.span)});
    };
    parallel_items(split.blocks * split.segments, p_.threads, control_,
                   [](void* i, int64_t n) { (*static_cast<decltype(item)*>(i))(n); }, &item);
  }

  // use(p, b, rows of b) with the cosines of panel part.first + p of `lanes` and panel b of `others` in `tile`.
  template <class Use>
  void meet(const Part& part, const PackedRows& lanes, const PackedRows& others, const LeftOut& left_out, float* tile,
            Use&& use) {
    const int64_t chunk = std::max<int64_t>(1, kChunkFloats / (others.steps() * kPanel));  // panels that stay in L2
    for (int64_t from = part.from; from < part.to && !control_.stopped(); from += chunk)
      for (int64_t p = part.first; p < part.last; ++p)
        for (int64_t b = from; b < std::min(part.to, from + chunk); ++b) {
          lanes.inner(p, others, b, tile);
          left_out.mark(tile, p * kPanel, lanes.count(p), b * kPanel, others.count(b));
          use(p - part.first, b, others.count(b));
        }
  }

  // sum_j w_ij y_j of every row in the lanes, and of the weights alone if asked for.
  void gradient(const PackedRows& lanes, const PackedRows& others, const LeftOut& left_out, const Shares& of_lanes,
                const Shares& of_others, float* by_lanes, double* weights = nullptr) {
    const int64_t held = lanes.steps(), floats = lanes.rows() * p_.columns;
    const Split split(lanes, others, held);
    const int64_t padded = lanes.panels() * kPanel;
    Buffer<float> partial(split.segments > 1 ? split.segments * floats : 0);
    Buffer<double> weight(weights ? split.segments * padded : 0);
    if (weights) std::fill_n(weight.get(), split.segments * padded, 0.0);
    in_parts(split, lanes, others, [&](const Part& part) {
      Buffer<float> tile(kPanel * kPanel), out((part.last - part.first) * held * kPanel);
      meet(part, lanes, others, left_out, tile.get(), [&](int64_t p, int64_t b, int count) {
        tile_.weigh(tile.get(), count, of_lanes, (part.first + p) * kPanel, of_others, b * kPanel);
        if (weights) tile_.add_rows(tile.get(), count, weight.get() + part.segment * padded + (part.first + p) * kPanel);
        others.combine(tile.get(), b, b == part.from, out.get() + p * held * kPanel);
      });
      float* to = split.segments > 1 ? partial.get() + part.segment * floats : by_lanes;
      if (control_.stopped()) return;
      for (int64_t p = part.first; p < part.last; ++p) lanes.unpack(out.get() + (p - part.first) * held * kPanel, p, to);
    });
    if (control_.stopped()) return;
    for (int64_t i = 0; weights && i < padded; ++i) {
      weights[i] = 0;
      for (int64_t s = 0; s < split.segments; ++s) weights[i] += weight[s * padded + i];
    }
    if (split.segments == 1) return;
    for (int64_t i = 0; i < floats; ++i) {
      float sum = partial[i];
      for (int64_t s = 1; s < split.segments; ++s) sum += partial[s * floats + i];
      by_lanes[i] = sum;
    }
  }

  const PairsProblem& p_;
  Control& control_;
  const PairTile tile_;
  PackedRows x_, y_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
