// Every pair exactly: for rows that no low-precision search could settle, and where lists are long enough, or the batch
// small enough, that it costs less than selecting first.
//
// A block of queries is packed into panels, its lanes; references are broadcast, feature by feature: the matrix product's
// loop (tile.h) with a difference and its square instead of a product, and with sums that go on in double every kSumSteps
// features, so that nothing needs to be evaluated again. Then a selection by counting (select.h). `rows` streams the
// references past the queries of a block; `batch` computes each pair of a batch once, in a matrix. Both end with
// complete(i, list, n, scratch) for every row: its n <= wanted nearest finite references, in no particular order.
#pragma once

#include "evaluate.h"

namespace ldreg {
inline namespace LDREG_ISA {

// kDirectRows * kDirectVectors sums, the lanes, a broadcast feature and a difference.
#if LDREG_VECTOR_BYTES == 64
constexpr int kDirectVectors = 3, kDirectRows = 8;  // 29 of 32 registers
#elif defined(__aarch64__)
constexpr int kDirectVectors = 4, kDirectRows = 4;  // 22 of 32
#else
constexpr int kDirectVectors = 2, kDirectRows = 4;  // 12 of 16
#endif
template <class T> constexpr int kDirectPanel = kDirectVectors * lanes<T>;

// Where every pair exactly is the cheaper way: in small batches, and from one reference in so many wanted on. A tile of
// differences and squares takes two to four times the time of the products; what it saves is the exact distances of a list,
// which are scattered over the memory. Measured with AVX2, where the products are of integers.
constexpr int kDirectRowsAlways = 256;
constexpr int kDirectShare = 4;
constexpr int kDirectShareOwn = 8;  // each pair of a batch once

constexpr int kDirectSteps = 64;     // features at a time: the panels' share of them stays in L1
constexpr int kDirectBlock = 96;     // queries packed together where references stream through
constexpr int kDirectChunk = 64;     // references between two visits to the same features' sums

// Squares that a float sum takes before it goes on in double. The fewer features, the less their roundings average out.
inline int run_for(int64_t columns) { return int(std::min<int64_t>(std::max<int64_t>(columns / 16, 2), kSumSteps)); }

// sums[row][lane] += (q - y)^2 over features 0..steps of the panel at q and the rows at y[0..kDirectRows).
template <class Real>
LDREG_HOT void add_differences(const Real* q, const Real* const* y, int64_t steps, int run, double* sums) {
  using Vec = typename Compute<Real>::Vec;
  constexpr int w = lanes<Real>, panel = kDirectPanel<Real>;
  const Real* row[kDirectRows];
  for (int r = 0; r < kDirectRows; ++r) row[r] = y[r];
  for (int64_t s = 0; s < steps;) {
    const int64_t end = std::min<int64_t>(steps, s + run);
    Vec sum[kDirectRows][kDirectVectors];
    for (int r = 0; r < kDirectRows; ++r)
      for (int v = 0; v < kDirectVectors; ++v) sum[r][v] = Vec{};
    for (; s < end; ++s) {
      Vec lane[kDirectVectors];
      for (int v = 0; v < kDirectVectors; ++v) lane[v] = load(q + s * panel + w * v);
#pragma GCC unroll 8
      for (int r = 0; r < kDirectRows; ++r) {
        const Real feature = row[r][s];
#pragma GCC unroll 4
        for (int v = 0; v < kDirectVectors; ++v) {
          const Vec d = lane[v] - feature;
          sum[r][v] += d * d;
        }
      }
    }
    for (int r = 0; r < kDirectRows; ++r)
      for (int v = 0; v < kDirectVectors; ++v) add_to(sums + r * panel + w * v, sum[r][v]);
  }
}

template <class T>
class DirectSearch {
 public:
  using Real = typename Compute<T>::Real;

  DirectSearch(const Problem& problem, Control& control, const Features<T>& x, const Features<T>& y, int wanted)
      : self_(problem.self), columns_(problem.columns), threads_(problem.threads), wanted_(wanted), control_(control),
        x_(x), y_(y) {}

  // Whether `batch` may be used: its matrix fits into `bytes`.
  static bool batch_fits(int64_t rows, int64_t bytes) { return rows * (rows + 8) * int64_t(sizeof(double)) <= bytes; }

  // The rows ids[0..count) against all references.
  template <class Scratch, class Complete>
  void rows(const int* ids, int64_t count, Complete&& complete) const {
    const int64_t chunk = std::max<int64_t>(256, 4 * wanted_), room = wanted_ + chunk;
    auto body = [&](int64_t b) {
      const int64_t from = b * kDirectBlock;
      const int queries = int(std::min<int64_t>(kDirectBlock, count - from));
      Block block;
      pack(block, ids + from, queries);
      Buffer<double> d2(queries * chunk);
      Buffer<Neighbour> lists(queries * room);
      Buffer<float> keys;
      Scratch scratch;
      int n[kDirectBlock] = {};
      bool settled = false;
      for (int64_t first = 0; first < y_.rows() && !settled; first += chunk) {
        const int size = int(std::min(chunk, y_.rows() - first));
        if (!distances(block, ids + from, queries, first, first + size,
                       [&](int q, int64_t j, double d) { d2[q * chunk + j - first] = d; }))
          return;
        settled = true;
        for (int q = 0; q < queries; ++q) {
          Neighbour* list = lists.get() + q * room;
          admit(ids[from + q], d2.get() + q * chunk, first, size, list, &n[q], keys);
          // Nothing later is nearer than copies of the row itself: a collapsed batch ends here, after one chunk.
          settled &= !x_.finite(ids[from + q]) || (n[q] == wanted_ && list[wanted_ - 1].d2 == 0);
        }
      }
      for (int q = 0; q < queries; ++q) complete(ids[from + q], lists.get() + q * room, n[q], scratch);
    };
    parallel((count + kDirectBlock - 1) / kDirectBlock, body);
  }

  // All rows of a batch among themselves; ids is 0, 1, 2, ...
  template <class Scratch, class Complete>
  void batch(const int* ids, Complete&& complete) const {
    constexpr int size = kDirectPanel<T>;  // half of a block's own square is done twice: the smaller the better
    const int64_t rows = x_.rows(), blocks = (rows + size - 1) / size;
    const int64_t stride = rows + 8;  // not a power of two, whose columns would share a cache set
    Buffer<double> d2(rows * stride);
    auto compute = [&](int64_t b) {
      const int64_t from = b * size;
      const int queries = int(std::min<int64_t>(size, rows - from));
      Block block;
      pack(block, ids + from, queries);
      distances(block, ids + from, queries, from, rows, [&](int q, int64_t j, double d) {
        d2[(from + q) * stride + j] = d2[j * stride + from + q] = d;
      });
    };
    auto select = [&](int64_t b) {
      Buffer<Neighbour> list(wanted_ + rows);
      Buffer<float> keys;
      Scratch scratch;
      for (int64_t i = b * size; i < std::min(rows, (b + 1) * size) && !control_.stopped(); ++i) {
        int n = 0;
        admit(i, d2.get() + i * stride, 0, int(rows), list.get(), &n, keys);
        complete(i, list.get(), n, scratch);
      }
    };
    parallel(blocks, compute);
    if (!control_.stopped()) parallel(blocks, select);
  }

 private:
  struct Block {
    Buffer<Real> packed;     // [panel][feature][lane]
    Buffer<Real> converted;  // [kDirectChunk][columns + a line], where T is not Real
    Buffer<double> sums;     // [panel][kDirectChunk][lane]
  };

  // Rows with NaN or Inf are packed as zeros: what is computed of them is not used.
  void pack(Block& block, const int* ids, int count) const {
    constexpr int panel = kDirectPanel<T>, w = lanes<T>;
    const int64_t panels = (count + panel - 1) / panel;
    block.packed.reserve(panels * columns_ * panel);
    block.sums.reserve(panels * kDirectChunk * panel);
    for (int64_t p = 0; p < panels; ++p) {
      Real* to = block.packed.get() + p * columns_ * panel;
      for (int64_t c = 0; c < columns_; c += w) {
        const int64_t n = std::min<int64_t>(w, columns_ - c);
        for (int lane = 0; lane < panel; ++lane) {
          const int64_t q = p * panel + lane;
          typename Compute<T>::Vec v = {};
          if (q < count && x_.finite(ids[q])) v = n == w ? load(x_.row(ids[q]) + c) : load_tail(x_.row(ids[q]) + c, n);
          Real row[w];
          std::memcpy(row, &v, sizeof row);
          for (int64_t l = 0; l < n; ++l) to[(c + l) * panel + lane] = row[l];
        }
      }
    }
  }

  // row[r] = reference from + r in Real, and the last of `size` again behind them.
  void references(Block& block, int64_t from, int size, const Real** row) const {
    constexpr int w = lanes<T>;
    const int64_t stride = columns_ + 64 / int64_t(sizeof(Real));  // rows a power of two apart would share cache sets
    if constexpr (!std::is_same<T, Real>::value) block.converted.reserve(kDirectChunk * stride);
    for (int r = 0; r < size; ++r) {
      const T* y = y_.row(from + r);
      if constexpr (std::is_same<T, Real>::value) {
        row[r] = y;
      } else {
        Real* to = block.converted.get() + r * stride;
        row[r] = to;
        for (int64_t c = 0; c < columns_; c += w) {
          const int64_t n = std::min<int64_t>(w, columns_ - c);
          const auto v = n == w ? load(y + c) : load_tail(y + c, n);
          std::memcpy(to + c, &v, n * sizeof(Real));
        }
      }
    }
    for (int r = size; r < kDirectChunk; ++r) row[r] = row[size - 1];
  }

  // write(q, j, d2) for the queries of the block and the references first..last. False if the call was stopped.
  template <class Write>
  bool distances(Block& block, const int* ids, int count, int64_t first, int64_t last, Write&& write) const {
    constexpr int panel = kDirectPanel<T>;
    const int64_t panels = (count + panel - 1) / panel;
    double* sums = block.sums.get();
    for (int64_t from = first; from < last; from += kDirectChunk) {
      if (control_.stopped()) return false;
      const int size = int(std::min<int64_t>(kDirectChunk, last - from));
      const Real* row[kDirectChunk];
      references(block, from, size, row);
      std::fill_n(sums, panels * kDirectChunk * panel, 0.0);
      for (int64_t c = 0; c < columns_; c += kDirectSteps) {
        const int64_t steps = std::min<int64_t>(kDirectSteps, columns_ - c);
        for (int r = 0; r < size; r += kDirectRows) {
          const Real* y[kDirectRows];
          for (int k = 0; k < kDirectRows; ++k) {
            y[k] = row[r + k] + c;
          }
          for (int64_t p = 0; p < panels; ++p)
            add_differences(block.packed.get() + (p * columns_ + c) * panel, y, steps, run_for(columns_),
                            sums + (p * kDirectChunk + r) * panel);
        }
      }
      constexpr double infinity = std::numeric_limits<double>::infinity();
      for (int q = 0; q < count; ++q) {
        const double* d2 = sums + (q / panel * int64_t(kDirectChunk)) * panel + q % panel;
        const bool finite = x_.finite(ids[q]);
        for (int r = 0; r < size; ++r) {
          double d = finite ? d2[r * panel] : infinity;
          if (!in_range<T>(d))
            d = finite && y_.finite(from + r) ? beyond_range(x_.row(ids[q]), y_.row(from + r), columns_, d) : infinity;
          write(q, from + r, d);
        }
      }
    }
    return true;
  }

  // Merge references first..first+size, at squared distances d2, into the list of the wanted_ nearest to row i.
  void admit(int64_t i, const double* d2, int64_t first, int size, Neighbour* list, int* n, Buffer<float>& keys) const {
    if (!x_.finite(i)) return;
    const int64_t self = self_.of(i);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float* key = keys.reserve(size);
    for (int r = 0; r < size; ++r)  // NaN, which no comparison admits, for references that are not finite
      key[r] = d2[r] < double(infinity) ? static_cast<float>(d2[r]) : std::numeric_limits<float>::quiet_NaN();
    // No more than the wanted nearest of these can be neighbours (one more, because self may be among them). Once the list
    // is full, its end bounds them: references come in the order of their indices, so that at equal distance a later one is
    // not nearer.
    const double bound = *n == wanted_ ? list[wanted_ - 1].d2 : double(infinity);
    const float near = *n == wanted_        ? std::nextafter(static_cast<float>(bound), infinity)
                       : size > wanted_ + 1 ? at_least(key, size, wanted_ + 1)
                                            : infinity;
    int end = *n;
    for (int c = 0; c < size; c += kLanes)
      for (unsigned hits = mask_less_equal(block(key, c, size, std::nanf("")), near - Floats{}); hits; hits &= hits - 1) {
        const int r = c + __builtin_ctz(hits);
        list[end] = Neighbour{d2[r], int(first) + r};
        end += (d2[r] < bound) & (first + r != self);
      }
    *n = std::min(end, wanted_);
    if (end >= wanted_) split_smallest(list, end, wanted_, keys);
  }

  template <class Body>
  void parallel(int64_t items, Body& body) const {
    parallel_items(items, threads_, control_, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body);
  }

  const SelfIndex& self_;
  int64_t columns_;
  int threads_, wanted_;
  Control& control_;
  const Features<T>&x_, &y_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
