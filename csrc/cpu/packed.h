// Rows of floats in panels, and the two products that sums over pairs are made of, by the distance tile (tile.h).
//
//     inner(a, b):     tile[j][lane] = <row j of panel b, row lane of panel a>
//     combine(w, b):   out[column][lane] += sum_j w[j][lane] * (row j of panel b)[column]
//
// One packed copy serves as rows in the lanes, as rows that are broadcast, and, read the other way, as the columns of the
// second product. NaN and Inf go through like any number.
#pragma once

#include "tile.h"

namespace ldreg {
inline namespace LDREG_ISA {

class PackedRows {
 public:
  explicit PackedRows(int64_t columns) : columns_(columns), steps_(steps_for(columns, FloatOperand::per_step)) {}

  int64_t steps() const { return steps_; }
  int64_t rows() const { return rows_; }
  int64_t panels() const { return (rows_ + kPanel - 1) / kPanel; }
  int count(int64_t panel) const { return int(std::min<int64_t>(kPanel, rows_ - panel * kPanel)); }
  const uint32_t* panel(int64_t p) const { return words_.get() + p * steps_ * kPanel; }

  // Lanes behind the last row, and steps behind the last column, are 0.
  void pack(const float* rows, int64_t count, int64_t stride, int threads, Control& control) {
    rows_ = count;
    words_.reserve(panels() * steps_ * kPanel);
    struct Source { PackedRows& to; const float* rows; int64_t stride; } source{*this, rows, stride};
    parallel_items(panels(), threads, control, [](void* s, int64_t p) {
      auto& own = *static_cast<Source*>(s);
      own.to.pack_panel(own.rows + p * kPanel * own.stride, own.stride, p);
    }, &source, double(count) * double(columns_) * 0.3);
  }

  void inner(int64_t a, const PackedRows& other, int64_t b, float* tile) const {
    const uint32_t *q = panel(a), *y = other.panel(b);
    for (int64_t s = 0; s < steps_; s += kStepBlock)
      for (int r = 0; r < kPanel; r += kTileRows)
        multiply_tile<FloatOperand, kPanel>(q + s * kPanel, nullptr, y + s * kPanel + r, nullptr, 1,
                                            std::min<int64_t>(kStepBlock, steps_ - s), s == 0, tile + r * kPanel);
  }

  // `count` rows of panel b; out is [steps][kPanel], overwritten if `first`.
  void combine(const float* weights, int64_t b, bool first, float* out) const {
    const uint32_t *w = reinterpret_cast<const uint32_t*>(weights), *y = panel(b);
    for (int64_t c = 0; c < steps_; c += kTileRows)
      multiply_tile<FloatOperand, 1>(w, nullptr, y + c * kPanel, nullptr, kPanel, count(b), first, out + c * kPanel);
  }

  // out [steps][kPanel] of panel p as plain rows.
  void unpack(const float* out, int64_t p, float* rows) const {
    constexpr int words = 16;  // a cache line of every row at a time
    for (int64_t from = 0; from < columns_; from += words)
      for (int lane = 0; lane < count(p); ++lane)
        for (int64_t c = from; c < std::min(columns_, from + words); ++c)
          rows[(p * kPanel + lane) * columns_ + c] = out[c * kPanel + lane];
  }

 private:
  void pack_panel(const float* rows, int64_t stride, int64_t p) {
    uint32_t* to = words_.get() + p * steps_ * kPanel;
    constexpr int words = 16;
    for (int64_t from = 0; from < steps_; from += words) {
      const int64_t end = std::min(steps_, from + words), filled = std::max(from, std::min(end, columns_));
      for (int lane = 0; lane < kPanel; ++lane) {
        uint32_t row[words] = {};
        if (lane < count(p)) std::memcpy(row, rows + lane * stride + from, size_t(filled - from) * sizeof *row);
        for (int64_t s = from; s < end; ++s) to[s * kPanel + lane] = row[s - from];
      }
    }
  }

  int64_t columns_, steps_, rows_ = 0;
  Buffer<uint32_t> words_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
