// The neighbour search: select cheaply, evaluate exactly, row block by row block.
//
// A block of queries meets all references: chunk of references -> distance tile -> candidates (candidates.h). Where the
// references are the queries, each pair of blocks meets once and serves both (own_batch.h). Then every candidate list is
// evaluated exactly (evaluate.h). Rows whose candidates did not fit are searched again with float operands, and if that is
// not enough by evaluating every pair (direct.h). Each finished row goes to a sink, which makes distances or LIDs of it
// while the rows it needs are still in the cache.
// Memory is O(B + N) for norms, O(block) per thread, and at most kSymmetricBytes where blocks meet once (lists put aside
// included).
#pragma once

#include "direct.h"
#include "own_batch.h"

#include <stdexcept>

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int kMaxPanels = 384 / kPanel;     // queries in a block
constexpr int64_t kChunkBytes = 256 << 10;  // a chunk of converted references stays in L2
constexpr int64_t kThreadBytes = 8 << 20;   // a block's packed queries and candidate lists

template <class T>
class Search {
 public:
  using Real = typename Compute<T>::Real;

  Search(const Problem& problem, Control& control)
      : problem_(problem), control_(control), x_(problem.x, problem.columns), y_(problem.y, problem.columns),
        wanted_(problem.k + problem.drop_smallest) {
    x_.scan(problem.threads, control);
    if (!problem.same) y_.scan(problem.threads, control);
  }

  // sink(i, list, n, scratch): the neighbours of row i in no particular order, on some thread; list is the sink's to
  // reorder. A row with NaN or Inf has every d2 = +inf.
  template <class Scratch, class Sink>
  void run(Sink&& sink) {
    const int share = meets_itself_in_matrix() ? kDirectShareOwn : kDirectShare;
    if (y_rows() <= kDirectRowsAlways || y_rows() <= int64_t(wanted_) * share) return run_direct<Scratch>(sink);
    choose_unit();
    if (problem_.columns >= kShortMinColumns) run_with<ShortOperand, Scratch>(sink);
    else run_with<FloatOperand, Scratch>(sink);
  }

  const T* query(int64_t i) const { return x_.row(i); }
  const T* reference(int64_t j) const { return y_.row(j); }
  bool query_finite(int64_t i) const { return x_.finite(i); }

 private:
  const Features<T>& references() const { return problem_.same ? x_ : y_; }
  int64_t y_rows() const { return references().rows(); }

  // Scale to entries near 1; centre on the mean of a sample of rows unless the features are exact as they are (low-bit
  // or integer values) and hardly off-centre. Any choice is correct, because its rounding is measured.
  void choose_unit() {
    const Features<T>& y = references();
    const int64_t padded = (problem_.columns + 15) / 16 * 16;
    const double largest = std::max(x_.largest(), y.largest());
    constexpr int limit = std::numeric_limits<Real>::max_exponent - 2;  // the scale itself must be a normal number
    if (largest > 0) scale_ = static_cast<Real>(std::ldexp(1.0, -std::min(std::max(std::ilogb(largest), -limit), limit)));
    centre_.reserve(padded);
    std::fill_n(centre_.get(), padded, Real(0));
    const int64_t stride = std::max<int64_t>(1, y.rows() / 128);
    Buffer<double> mean(padded);
    std::fill_n(mean.get(), padded, 0.0);
    int64_t used = 0;
    Doubles squares = {};
    Ints inexact = {};
    for (int64_t j = 0; j < y.rows(); j += stride) {
      if (!y.finite(j)) continue;
      ++used;
      for (int64_t c = 0; c < problem_.columns; c += kLanes) {
        const Floats v = scaled(y.row(j) + c, centre_.get() + c, scale_, problem_.columns - c);
        add_to(mean.get() + c, v);
        squares += widen(v * v);
        inexact |= v != ShortOperand::round(v);
      }
    }
    bool exact = !ShortOperand::integer;
    for (int l = 0; l < kLanes; ++l) exact &= inexact[l] == 0;
    const double square = sum(squares);
    if (used == 0) return;
    double offset = 0;
    for (int64_t c = 0; c < problem_.columns; ++c) mean[c] /= used, offset += mean[c] * mean[c];
    const bool centred = square / used > 16 * (square / used - offset);  // mean |x|^2 against mean |x - mean|^2
    exact_unit_ = exact && !centred && sizeof(Real) == 4;
    if (exact_unit_) return;
    for (int64_t c = 0; c < problem_.columns; ++c) centre_[c] = static_cast<Real>(mean[c]);
  }

  // Norms and residuals of all rows in one operand format, and the units of its numbers.
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
    const double roundings = kSumSteps + 24 + double(dot_roundings<Operand>(steps));
    p.gamma = problem_.exact ? static_cast<float>(roundings * 0x1p-24 * 1.01) : 0;
    measure<Operand>(x_, p.gamma, p.x);
    if (!p.same) measure<Operand>(y_, p.gamma, p.y);
  }

  template <class Operand>
  void measure(Features<T>& rows, float gamma, Bounds& bounds) {
    const int64_t n = rows.rows(), padded = (n + kPanel - 1) / kPanel * kPanel;
    float* norm = bounds.norm.reserve(padded);
    float* residual = bounds.residual.reserve(padded);
    float* slack = bounds.slack.reserve(padded);
    float* bias = bounds.bias.reserve(padded);
    float* unit = bounds.unit.reserve(padded);
    if (!Operand::integer) std::fill_n(unit, padded, 0.0f);
    rows.set_exact(exact_unit_);
    const float limit = integer_limit(std::min<int64_t>(steps_for(problem_.columns, 1), kStepBlock * Operand::per_step));
    rows.template measure<Operand>(centre_.get(), scale_, limit, problem_.threads, control_, norm, residual, unit);
    for (int64_t i = 0; i < padded; ++i) {
      if (i >= n || !rows.finite(i)) norm[i] = kNever, residual[i] = 0;
      else if (!problem_.exact) residual[i] = 0;
      slack[i] = gamma * norm[i] + residual[i] * residual[i];
      bias[i] = norm[i] - slack[i];
      if (i >= n || !rows.finite(i)) unit[i] = 0;
    }
  }

  bool meets_itself_in_matrix() const {
    return problem_.same && DirectSearch<T>::batch_fits(x_.rows(), kSymmetricBytes);
  }

  // Every pair exactly, nothing selected first.
  template <class Scratch, class Sink>
  void run_direct(Sink& sink) {
    Buffer<int> ids(x_.rows());
    number(ids.get());
    const DirectSearch<T> direct(problem_, control_, x_, references(), wanted_);
    const auto done = [&](int64_t i, Neighbour* list, int n, Scratch& scratch) { complete(i, list, n, scratch, sink); };
    if (meets_itself_in_matrix()) direct.template batch<Scratch>(ids.get(), done);
    else direct.template rows<Scratch>(ids.get(), x_.rows(), done);
  }

  // All queries.
  void number(int* ids) const {
    for (int64_t i = 0; i < x_.rows(); ++i) ids[i] = int(i);
  }

  template <class First, class Scratch, class Sink>
  void run_with(Sink& sink) {
    Buffer<int> ids(x_.rows());
    number(ids.get());
    const DirectSearch<T> direct(problem_, control_, x_, references(), wanted_);
    const auto done = [&](int64_t i, Neighbour* list, int n, Scratch& scratch) { complete(i, list, n, scratch, sink); };
    const int64_t share = problem_.same ? OwnBatch<T, First>::share_for(x_.rows(), problem_.columns, wanted_) : 0;
    int64_t left = share > 0 ? pass_symmetric<First, Scratch>(ids.get(), share, sink)
                             : pass<First, Scratch>(ids.get(), x_.rows(), sink);
    if (left > 0 && 0 < share && share < x_.rows()) left = pass<First, Scratch>(ids.get(), left, sink);  // longer lists
    if (left > 0 && !std::is_same<First, FloatOperand>::value) left = pass<FloatOperand, Scratch>(ids.get(), left, sink);
    if (left > 0) direct.template rows<Scratch>(ids.get(), left, done);
  }

  // Search the rows ids[0..count); those whose candidates overflowed are left in ids[0..result), in order.
  template <class Operand, class Scratch, class Sink>
  int64_t pass(int* ids, int64_t count, Sink& sink) {
    Prepared prepared;
    prepare<Operand>(prepared);
    const int64_t panels = (count + kPanel - 1) / kPanel;
    const int64_t per_thread = (panels + problem_.threads - 1) / problem_.threads;
    const int64_t panel_bytes = kPanel * (4 * steps_for(problem_.columns, Operand::per_step) + 8 * one_sided_room());
    const int64_t most = std::max<int64_t>(1, std::min<int64_t>(kMaxPanels, kThreadBytes / panel_bytes));
    const int64_t rounds = (per_thread + most - 1) / most;
    const int64_t blocks = std::min(panels, rounds * problem_.threads);  // equal shares
    Buffer<uint8_t> failed(count);
    auto body = [&](int64_t b) {
      const int64_t from = panels * b / blocks * kPanel, to = std::min(count, panels * (b + 1) / blocks * kPanel);
      search_block<Operand, Scratch>(prepared, ids + from, int(to - from), failed.get() + from, sink);
    };
    parallel(blocks, body);
    return keep_failed(ids, failed.get(), count);
  }

  int64_t keep_failed(int* ids, const uint8_t* failed, int64_t count) {
    if (control_.stopped()) return 0;
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i)
      if (failed[i]) ids[left++] = ids[i];
    return left;
  }

  // One block of queries against all references, which stream through as plain rows.
  template <class Operand, class Scratch, class Sink>
  void search_block(const Prepared& prepared, const int* ids, int count, uint8_t* failed, Sink& sink) {
    const Features<T>& y = references();
    const Bounds& bounds = prepared.references();
    const int64_t lanes_used = (count + kPanel - 1) / kPanel;
    Panels<T, Operand> panels(problem_.columns);
    panels.reserve(lanes_used);
    for (int64_t p = 0; p < lanes_used; ++p)
      panels.pack(p, x_, ids + p * kPanel, std::min<int>(kPanel, count - int(p) * kPanel), centre_.get(), scale_,
                  prepared.x.unit.get());
    Candidates candidates;
    candidates.start(count, wanted_, one_sided_room(), prepared.gamma, problem_.exact);
    for (int i = 0; i < count; ++i) open(candidates, i, prepared.x, ids[i]);

    const int64_t steps = panels.steps();
    const int64_t fit = std::min<int64_t>(kChunkBytes / (4 * steps), 256);
    const int64_t rows = std::max<int64_t>(kTileRows, fit / kTileRows * kTileRows);
    const int64_t stride = row_stride_for(steps);
    Buffer<uint32_t> chunk(rows * stride);
    Buffer<float> products(rows * lanes_used * kPanel);
    for (int64_t first = 0; first < y.rows(); first += rows) {
      if (control_.stopped()) return;
      const int n = int(std::min(rows, y.rows() - first));
      const int padded = (n + kTileRows - 1) / kTileRows * kTileRows;
      for (int r = 0; r < padded; ++r) {
        uint32_t* row = chunk.get() + r * stride;
        const float unit = bounds.unit[first + r];
        if (r < n && y.finite(first + r))
          y.template convert<Operand>(first + r, centre_.get(), scale_, unit > 0 ? 1 / unit : 0, 0, steps, row);
        else std::memset(row, 0, steps * sizeof *row);
      }
      panels.multiply_rows(0, lanes_used, chunk.get(), bounds.unit.get() + first, padded, products.get());
      candidates.offer_to_lanes(products.get(), lanes_used, n, padded, 0, first, bounds);
    }
    finish<Scratch>(candidates, 0, ids, count, bounds, failed, sink);
  }

  // Every row against every row of the same batch, `share` rows at a time (own_batch.h).
  template <class Operand, class Scratch, class Sink>
  int64_t pass_symmetric(int* ids, int64_t share, Sink& sink) {
    Prepared prepared;
    prepare<Operand>(prepared);
    Buffer<uint8_t> failed(x_.rows());
    OwnBatch<T, Operand> batch(problem_, control_, x_, prepared.x, centre_.get(), scale_, prepared.gamma, wanted_, share);
    batch.search([&](Candidates& candidates, int64_t list, int64_t row, int count) {
      finish<Scratch>(candidates, list, ids + row, count, prepared.x, failed.get() + row, sink);
    });
    return keep_failed(ids, failed.get(), x_.rows());
  }

  int one_sided_room() const { return Candidates::room_for(wanted_, std::min<int64_t>(y_rows() / 8, 2048)); }

  void open(Candidates& candidates, int64_t list, const Bounds& x, int64_t i) const {
    if (x_.finite(i)) candidates.open(list, x.norm[i], x.residual[i], problem_.self.of(i));
  }

  // Evaluate the lists first..first+count, of the rows ids[0..count), and hand the rows over; `failed` tells which
  // overflowed instead.
  template <class Scratch, class Sink>
  void finish(Candidates& candidates, int64_t first, const int* ids, int count, const Bounds& y, uint8_t* failed,
              Sink& sink) {
    Evaluator<T> evaluate(x_, references(), problem_.columns, wanted_, std::ilogb(scale_), problem_.exact);
    Evaluation group[kGroup];
    Scratch scratch;
    // Together only if the group will want most references more than once; else one by one, so that the sink finds the
    // neighbours' rows still in L2.
    const int64_t fit = std::min<int64_t>(kGroup, kGroupBytes / int64_t(problem_.columns * sizeof(T)));
    const int together = wanted_ * fit >= 2 * references().rows() ? int(fit) : 1;
    for (int from = 0; from < count && !control_.stopped(); from += together) {
      int size = 0;
      for (int i = from; i < std::min(count, from + together); ++i) {
        failed[i] = x_.finite(ids[i]) && candidates.overflowed(first + i);
        if (failed[i]) continue;
        Evaluation& e = group[size++];
        e.query = ids[i];
        e.lower.reserve(candidates.room()), e.index.reserve(candidates.room());
        e.list.reserve(std::max(candidates.room(), wanted_));
        e.count = x_.finite(ids[i]) ? candidates.finish(first + i, y, e.lower.get(), e.index.get()) : 0;
      }
      evaluate(group, size);
      for (int g = 0; g < size; ++g) complete(group[g].query, group[g].list.get(), group[g].count, scratch, sink);
    }
  }

  // Too few finite references: fill up with the others at distance +inf, lowest index first. Then hand over.
  template <class Scratch, class Sink>
  void complete(int64_t i, Neighbour* list, int n, Scratch& scratch, Sink& sink) {
    const Features<T>& y = references();
    const int64_t self = problem_.self.of(i);
    for (int64_t j = 0; n < wanted_; ++j) {
      if (j == y.rows()) throw std::logic_error("ldreg_kernels: the search lost a neighbour; please report this");
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
  void parallel(int64_t items, Body& body, double work = std::numeric_limits<double>::infinity()) {
    parallel_items(items, problem_.threads, control_, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body,
                   work);
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
