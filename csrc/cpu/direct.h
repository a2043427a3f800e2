// Every pair exactly: for rows that no low-precision search could settle, and for batches that want most pairs anyway.
//
// Squared distances in register tiles (exact.h), then a selection by counting (select.h). `rows` streams the references
// past a few queries at a time, in any number; `batch` computes each pair of a small batch once, in a matrix. Both end
// with complete(i, list, n, scratch) for every row: its n <= wanted nearest finite references, in no particular order.
#pragma once

#include "evaluate.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int kDirectRows = 4;     // queries that share a pass over the references, themselves in L1
constexpr int kDirectShare = 5;    // from one reference in five wanted, computing all exactly is the cheaper way
#if LDREG_VECTOR_BYTES == 64
constexpr int kDirectQueries = 4;  // 16 sums, 4 queries, a reference and a difference in 32 registers
#elif LDREG_VECTOR_BYTES == 32 || defined(__aarch64__)
constexpr int kDirectQueries = 2;  // 8 sums and as many others; with 16, GCC keeps some of NEON's 32 registers on the stack
#else
constexpr int kDirectQueries = 1;  // SSE2 copies what it overwrites
#endif

template <class T>
class DirectSearch {
 public:
  DirectSearch(const Problem& problem, Control& control, const Features<T>& x, const Features<T>& y, int wanted)
      : self_(problem.self), columns_(problem.columns), threads_(problem.threads), wanted_(wanted), control_(control),
        x_(x), y_(y) {}

  // Whether `batch` may be used: its matrix fits into `bytes`.
  static bool batch_fits(int64_t rows, int64_t bytes) { return rows * (rows + 8) * int64_t(sizeof(double)) <= bytes; }

  // The rows ids[0..count) against all references.
  template <class Scratch, class Complete>
  void rows(const int* ids, int64_t count, Complete&& complete) {
    const int64_t chunk = std::max<int64_t>(256, 4 * wanted_), room = wanted_ + chunk;
    auto body = [&](int64_t b) {
      const int64_t from = b * kDirectRows, queries = std::min<int64_t>(kDirectRows, count - from);
      Buffer<double> d2(kDirectRows * chunk);
      Buffer<Neighbour> lists(queries * room);
      Buffer<float> keys;
      Scratch scratch;
      int n[kDirectRows] = {};
      bool settled = false;
      for (int64_t first = 0; first < y_.rows() && !settled; first += chunk) {
        if (control_.stopped()) return;
        const int size = int(std::min(chunk, y_.rows() - first));
        for (int r = 0; r < size; r += 4)
          tile(ids + from, int(queries), first + r,
               [&](int64_t q, int64_t k, double d) { d2[q * chunk + r + k] = d; });
        settled = true;
        for (int64_t q = 0; q < queries; ++q) {
          Neighbour* list = lists.get() + q * room;
          admit(ids[from + q], d2.get() + q * chunk, first, size, list, &n[q], keys);
          // Nothing later is nearer than copies of the row itself: a collapsed batch ends here, after one chunk.
          settled &= !x_.finite(ids[from + q]) || (n[q] == wanted_ && list[wanted_ - 1].d2 == 0);
        }
      }
      for (int64_t q = 0; q < queries; ++q) complete(ids[from + q], lists.get() + q * room, n[q], scratch);
    };
    parallel((count + kDirectRows - 1) / kDirectRows, body);
  }

  // All rows of a batch among themselves; ids is 0, 1, 2, ...
  template <class Scratch, class Complete>
  void batch(const int* ids, Complete&& complete) {
    const int64_t rows = x_.rows();
    const int64_t stride = rows + 8;  // not a power of two, whose columns would share a cache set
    Buffer<double> d2(rows * stride);
    auto compute = [&](int64_t b) {
      const int64_t from = b * kDirectRows;
      const int queries = int(std::min<int64_t>(kDirectRows, rows - from));
      for (int64_t first = from; first < rows && !control_.stopped(); first += 4)
        tile(ids + from, queries, first, [&](int64_t q, int64_t k, double d) {
          if (first + k < rows) d2[(from + q) * stride + first + k] = d2[(first + k) * stride + from + q] = d;
        });
    };
    auto select = [&](int64_t b) {
      Buffer<Neighbour> list(wanted_ + rows);
      Buffer<float> keys;
      Scratch scratch;
      for (int64_t i = b * kDirectRows; i < std::min(rows, (b + 1) * kDirectRows) && !control_.stopped(); ++i) {
        int n = 0;
        admit(i, d2.get() + i * stride, 0, int(rows), list.get(), &n, keys);
        complete(i, list.get(), n, scratch);
      }
    };
    const int64_t blocks = (rows + kDirectRows - 1) / kDirectRows;
    parallel(blocks, compute);
    if (!control_.stopped()) parallel(blocks, select);
  }

 private:
  // write(q, k, d2) for the rows ids[0..queries) and the references first..first+4 (the last one repeated at the end).
  template <class Write>
  void tile(const int* ids, int queries, int64_t first, Write&& write) {
    const T *others[4], *own[kDirectQueries];
    double d2[kDirectQueries * 4];
    for (int k = 0; k < 4; ++k) others[k] = y_.row(std::min(first + k, y_.rows() - 1));
    for (int q = 0; q < queries; q += kDirectQueries) {
      for (int k = 0; k < kDirectQueries; ++k) own[k] = x_.row(ids[std::min(q + k, queries - 1)]);
      squared_distances<kDirectQueries>(own, others, columns_, d2);
      for (int k = 0; k < 4 * std::min(kDirectQueries, queries - q); ++k) write(q + k / 4, k % 4, d2[k]);
    }
  }

  // Merge references first..first+size, at squared distances d2, into the list of the wanted_ nearest to row i.
  void admit(int64_t i, const double* d2, int64_t first, int size, Neighbour* list, int* n, Buffer<float>& keys) const {
    if (!x_.finite(i)) return;
    const int64_t self = self_.of(i);
    // No more than the wanted nearest of these can be neighbours (one more, because self may be among them).
    float* key = keys.reserve(size);
    for (int r = 0; r < size; ++r) key[r] = static_cast<float>(d2[r]);
    const float near = size > wanted_ + 1 ? at_least(key, size, wanted_ + 1) : std::numeric_limits<float>::infinity();
    // References come in the order of their indices: at equal distance a later one is not nearer.
    const double bound = *n < wanted_ ? std::numeric_limits<double>::infinity() : list[wanted_ - 1].d2;
    int end = *n;
    for (int r = 0; r < size; ++r) {
      list[end] = Neighbour{d2[r], int(first) + r};
      end += (key[r] <= near) & (d2[r] < bound) & (first + r != self) & y_.finite(first + r);
    }
    *n = std::min(end, wanted_);
    if (end >= wanted_) split_smallest(list, end, wanted_, keys);
  }

  template <class Body>
  void parallel(int64_t items, Body& body) {
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
