// The neighbour search: select cheaply, evaluate exactly, row block by row block.
//
// A block of queries streams through all references: chunk of references -> distance tile -> candidates (candidates.h).
// Then every candidate list is evaluated exactly, in the order of the lower bounds and only as far as a neighbour could
// still be found (the optimal multi-step search of Seidl & Kriegel, 1998). Rows whose candidates did not fit are searched
// again with float operands, and if that is not enough by evaluating every pair. Each finished row goes to a sink, which
// makes distances or LIDs of it while the rows it needs are still in the cache.
// Threads share nothing but the row norms; memory is O(block) per thread and O(B + N) in all.
#pragma once

#include "candidates.h"
#include "exact.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int kMaxPanels = 8;              // queries in a block: up to 8 panels
constexpr int64_t kChunkBytes = 256 << 10;  // a chunk of converted references stays in L2

template <class T>
class Search {
 public:
  using Real = typename Compute<T>::Real;

  Search(const Problem& problem, Control& control)
      : problem_(problem), control_(control), x_(problem.x, problem.columns), y_(problem.y, problem.columns),
        wanted_(problem.k + problem.drop_smallest) {
    x_.scan(problem.threads, control);
    if (!problem.same) y_.scan(problem.threads, control);
    choose_unit();
  }

  // sink(i, list, n, scratch): the neighbours of row i in no particular order, on some thread; list is the sink's to
  // reorder. A row with NaN or Inf has every d2 = +inf.
  template <class Scratch, class Sink>
  void run(Sink&& sink) {
    if (kHasBf16 && problem_.columns >= kBf16MinColumns) run_with<Bf16Operand, Scratch>(sink);
    else run_with<FloatOperand, Scratch>(sink);
  }

  const T* query(int64_t i) const { return x_.row(i); }
  const T* reference(int64_t j) const { return y_.row(j); }
  bool query_finite(int64_t i) const { return x_.finite(i); }

 private:
  const Features<T>& references() const { return problem_.same ? x_ : y_; }

  // Scale to entries near 1; centre on the mean of a sample of rows unless the features are exact as they are (low-bit
  // or integer values) and hardly off-centre. Any choice is correct, because its rounding is measured.
  void choose_unit() {
    const Features<T>& y = references();
    const int64_t padded = (problem_.columns + 15) / 16 * 16;
    const float largest = std::max(x_.largest(), y.largest());
    if (largest > 0) scale_ = static_cast<Real>(std::ldexp(1.0, -std::min(std::max(std::ilogb(largest), -126), 126)));
    centre_.reserve(padded);
    std::fill_n(centre_.get(), padded, Real(0));
    const int64_t stride = std::max<int64_t>(1, y.rows() / 128);
    Buffer<double> mean(padded);
    std::fill_n(mean.get(), padded, 0.0);
    int64_t used = 0;
    double square = 0;
    bool exact = true;
    for (int64_t j = 0; j < y.rows(); j += stride) {
      if (!y.finite(j)) continue;
      ++used;
      for (int64_t c = 0; c < problem_.columns; c += 16) {
        const int64_t n = std::min<int64_t>(16, problem_.columns - c);
        const f32x16 v = scaled16(y.row(j) + c, centre_.get() + c, scale_, n);
        const f32x16 lost = v - Bf16Operand::round(v);
        for (int64_t l = 0; l < n; ++l) {
          mean[c + l] += v[l], square += double(v[l]) * v[l];
          exact &= lost[l] == 0;
        }
      }
    }
    if (used == 0) return;
    double offset = 0;
    for (int64_t c = 0; c < problem_.columns; ++c) mean[c] /= used, offset += mean[c] * mean[c];
    const bool centred = square / used > 16 * (square / used - offset);  // mean |x|^2 against mean |x - mean|^2
    exact_unit_ = exact && !centred && sizeof(Real) == 4;
    if (exact_unit_) return;
    for (int64_t c = 0; c < problem_.columns; ++c) centre_[c] = static_cast<Real>(mean[c]);
  }

  // Norms and residuals of all rows in one operand format.
  struct Prepared {
    Bounds x, y;
    bool same;
    float gamma;
    const Bounds& references() const { return same ? x : y; }
  };

  template <class Operand>
  void prepare(Prepared& p) {
    p.same = problem_.same;
    const int64_t steps = steps_for(problem_.columns, Operand::per_step);
    const double roundings = double(problem_.columns) / 16 + 24 + dot_roundings(steps, Operand::per_step);
    p.gamma = problem_.exact ? static_cast<float>(roundings * 0x1p-24 * 1.01) : 0;
    measure<Operand>(x_, p.x);
    if (!p.same) measure<Operand>(y_, p.y);
  }

  template <class Operand>
  void measure(Features<T>& rows, Bounds& bounds) {
    rows.set_exact(exact_unit_);
    float* norm = bounds.norm.reserve(rows.rows());
    float* residual = bounds.residual.reserve(rows.rows());
    rows.template measure<Operand>(centre_.get(), scale_, problem_.threads, control_, norm, residual);
    for (int64_t i = 0; i < rows.rows(); ++i) {
      if (!rows.finite(i)) norm[i] = kNever, residual[i] = 0;
      else if (!problem_.exact) residual[i] = 0;
    }
  }

  template <class Operand>
  struct Worker {
    explicit Worker(int64_t columns) : panels(columns) {}
    QueryPanels<T, Operand> panels;
    Candidates candidates;
    Buffer<uint32_t> chunk;
    Buffer<float> products, lower;
    Buffer<int> index;
    Buffer<Neighbour> list;
  };

  template <class First, class Scratch, class Sink>
  void run_with(Sink& sink) {
    Buffer<int> ids(x_.rows());
    for (int64_t i = 0; i < x_.rows(); ++i) ids[i] = int(i);
    int64_t left = pass<First, Scratch>(ids.get(), x_.rows(), sink);
    if (left > 0 && !std::is_same<First, FloatOperand>::value) left = pass<FloatOperand, Scratch>(ids.get(), left, sink);
    if (left > 0) direct<Scratch>(ids.get(), left, sink);
  }

  // Search the rows ids[0..count); those whose candidates overflowed are left in ids[0..result), in order.
  template <class Operand, class Scratch, class Sink>
  int64_t pass(int* ids, int64_t count, Sink& sink) {
    Prepared prepared;
    prepare<Operand>(prepared);
    const int64_t panels = (count + kPanel - 1) / kPanel;
    const int64_t per_thread = (panels + problem_.threads - 1) / problem_.threads;
    const int64_t rounds = (per_thread + kMaxPanels - 1) / kMaxPanels;
    const int64_t blocks = std::min(panels, rounds * problem_.threads);  // equal shares, no block above kMaxPanels
    Buffer<uint8_t> failed(count);
    auto body = [&](int64_t b) {
      const int64_t from = panels * b / blocks * kPanel, to = std::min(count, panels * (b + 1) / blocks * kPanel);
      Worker<Operand> worker(problem_.columns);
      Scratch scratch;
      search_block<Operand>(prepared, worker, scratch, ids + from, int(to - from), failed.get() + from, sink);
    };
    parallel(blocks, body);
    int64_t left = 0;
    if (!control_.stopped())
      for (int64_t i = 0; i < count; ++i)
        if (failed[i]) ids[left++] = ids[i];
    return left;
  }

  template <class Operand, class Scratch, class Sink>
  void search_block(const Prepared& prepared, Worker<Operand>& w, Scratch& scratch, const int* ids, int count,
                    uint8_t* failed, Sink& sink) {
    const Features<T>& y = references();
    const Bounds& bounds = prepared.references();
    w.panels.pack(x_, ids, count, centre_.get(), scale_);
    w.candidates.start(count, wanted_, y.rows(), prepared.gamma, problem_.exact);
    for (int i = 0; i < count; ++i)
      if (x_.finite(ids[i]))
        w.candidates.open(i, prepared.x.norm[ids[i]], prepared.x.residual[ids[i]], problem_.self.of(ids[i]));

    const int64_t steps = w.panels.steps();
    const int64_t rows = std::max<int64_t>(kTileRows, std::min<int64_t>(kChunkBytes / (4 * steps), 256) / kTileRows * kTileRows);
    uint32_t* chunk = w.chunk.reserve(rows * steps);
    float* products = w.products.reserve(rows * w.panels.panels() * kPanel);
    for (int64_t first = 0; first < y.rows(); first += rows) {
      if (control_.stopped()) return;
      const int n = int(std::min(rows, y.rows() - first));
      const int padded = (n + kTileRows - 1) / kTileRows * kTileRows;
      for (int r = 0; r < padded; ++r) {
        if (r < n && y.finite(first + r))
          y.template convert<Operand>(first + r, centre_.get(), scale_, chunk + r * steps, steps);
        else
          std::memset(chunk + r * steps, 0, steps * sizeof *chunk);
      }
      w.panels.multiply(chunk, padded, products);
      w.candidates.offer(products, n, padded, first, bounds);
    }

    w.lower.reserve(w.candidates.room()), w.index.reserve(w.candidates.room());
    w.list.reserve(std::max<int64_t>(w.candidates.room(), wanted_));
    for (int i = 0; i < count; ++i) {
      if (control_.stopped()) return;
      failed[i] = x_.finite(ids[i]) && w.candidates.overflowed(i);
      if (failed[i]) continue;
      int n = 0;
      if (x_.finite(ids[i])) {
        n = w.candidates.finish(i, bounds, w.lower.get(), w.index.get());
        n = evaluate(ids[i], w.lower.get(), w.index.get(), n, w.list.get());
      }
      complete(ids[i], w.list.get(), n, scratch, sink);
    }
  }

  // The wanted_ nearest of the candidates, exactly. Lower bounds are in the tile's unit. Reorders lower and index.
  int evaluate(int64_t i, float* lower, int* index, int candidates, Neighbour* list) {
    const double unit = 1.0 / double(scale_);
    const double margin = problem_.exact ? 1 - 1e-6 : 0;  // lower bounds carry a few roundings; "fast" trusts none
    const int first = std::min(wanted_, candidates);
    by_lower_bound(lower, index, candidates, first);
    int n = 0;
    evaluate_range(i, index, 0, first, list, &n);
    if (candidates == first) return n;

    // Of the rest, only those whose lower bound is below the k-th distance so far, nearest first.
    const double reach = std::sqrt(list[0].d2);
    int rest = first;
    for (int c = first; c < candidates; ++c) {
      if (lower[c] * unit * margin > reach) continue;
      std::swap(lower[c], lower[rest]), std::swap(index[c], index[rest]);
      ++rest;
    }
    for (int c = first; c < rest; c += 4) {
      by_lower_bound(lower + c, index + c, rest - c, std::min(4, rest - c));
      float nearest = lower[c];
      for (int l = c + 1; l < std::min(c + 4, rest); ++l) nearest = std::min(nearest, lower[l]);
      if (nearest * unit * margin > std::sqrt(list[0].d2)) break;
      evaluate_range(i, index, c, std::min(c + 4, rest), list, &n);
    }
    return n;
  }

  void evaluate_range(int64_t i, const int* index, int from, int to, Neighbour* list, int* n) {
    const Features<T>& y = references();
    const T* rows[4];
    double d2[4];
    for (int c = from; c < to; c += 4) {
      for (int r = 0; r < 4; ++r) rows[r] = y.row(index[std::min(c + r, to - 1)]);
      squared_distances(x_.row(i), rows, problem_.columns, d2);
      for (int r = 0; r < 4 && c + r < to; ++r) keep_smallest(list, n, wanted_, Neighbour{d2[r], index[c + r]});
    }
  }

  // Afterwards the k smallest lower bounds are in front.
  static void by_lower_bound(float* lower, int* index, int n, int k) {
    int lo = 0, hi = n - 1;
    while (lo < hi) {
      const float pivot = lower[lo + (hi - lo) / 2];
      int a = lo, b = hi;
      while (a <= b) {
        while (lower[a] < pivot) ++a;
        while (lower[b] > pivot) --b;
        if (a <= b) std::swap(lower[a], lower[b]), std::swap(index[a], index[b]), ++a, --b;
      }
      if (k - 1 <= b) hi = b;
      else if (k - 1 >= a) lo = a;
      else return;
    }
  }

  // Rows that no low-precision search could settle: every pair, four references at a time.
  template <class Scratch, class Sink>
  void direct(const int* ids, int64_t count, Sink& sink) {
    const Features<T>& y = references();
    constexpr int group = 8;  // queries that share a pass over the references
    auto body = [&](int64_t b) {
      const int64_t from = b * group, queries = std::min<int64_t>(group, count - from);
      Buffer<Neighbour> lists(group * wanted_);
      int n[group] = {};
      for (int64_t first = 0; first < y.rows(); first += 4) {
        if (first % 1024 == 0 && control_.stopped()) return;
        const T* rows[4];
        double d2[4];
        for (int r = 0; r < 4; ++r) rows[r] = y.row(std::min(first + r, y.rows() - 1));
        for (int64_t q = 0; q < queries; ++q) {
          const int64_t i = ids[from + q], self = problem_.self.of(i);
          squared_distances(x_.row(i), rows, problem_.columns, d2);
          for (int64_t j = first; j < std::min(first + 4, y.rows()); ++j)
            if (j != self && y.finite(j))
              keep_smallest(lists.get() + q * wanted_, &n[q], wanted_, Neighbour{d2[j - first], int(j)});
        }
      }
      Scratch scratch;
      for (int64_t q = 0; q < queries; ++q) complete(ids[from + q], lists.get() + q * wanted_, n[q], scratch, sink);
    };
    parallel((count + group - 1) / group, body);
  }

  // Too few finite references: fill up with the others at distance +inf, lowest index first. Then hand over.
  template <class Scratch, class Sink>
  void complete(int64_t i, Neighbour* list, int n, Scratch& scratch, Sink& sink) {
    const Features<T>& y = references();
    const int64_t self = problem_.self.of(i);
    for (int64_t j = 0; n < wanted_; ++j) {
      const bool listed = x_.finite(i) && y.finite(j);
      if (!listed && j != self) list[n++] = Neighbour{std::numeric_limits<double>::infinity(), int(j)};
    }
    if (problem_.drop_smallest) {
      int nearest = 0;
      for (int c = 1; c < n; ++c)
        if (before(list[c], list[nearest])) nearest = c;
      list[nearest] = list[--n];
    }
    sink(i, list, n, scratch);
  }

  template <class Body>
  void parallel(int64_t items, Body& body) {
    parallel_items(items, problem_.threads, control_, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body);
  }

  const Problem& problem_;
  Control& control_;
  Features<T> x_, y_;
  int wanted_;
  Buffer<Real> centre_;
  Real scale_ = 1;
  bool exact_unit_ = false;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
