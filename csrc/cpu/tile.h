// The distance tile: dot products of a block of queries with a chunk of reference rows, near the machine's matrix rate.
//
// Queries sit in the vector lanes, packed in panels [step][kPanel]; references are broadcast four bytes at a time, either
// from plain rows (they stream through once for every block of queries, so transposing them would cost) or from panels
// (when the references are the queries and all are packed once). Steps are taken kStepBlock at a time: a panel's share
// (8 to 24 KB) stays in L1, and the running sums are short enough for a tight rounding bound (`dot_roundings`). It knows
// nothing about distances or selection.
#pragma once

#include "operands.h"

namespace ldreg {
inline namespace LDREG_ISA {

// kTileRows * kVectors sums, kVectors lanes and a broadcast word fill the registers; kPanel is a multiple of kTileRows.
#if LDREG_VECTOR_BYTES == 64
constexpr int kVectors = 3, kTileRows = 8;  // 28 of 32
#elif LDREG_VECTOR_BYTES == 32
constexpr int kVectors = 3, kTileRows = 4;  // 16 of 16
#elif LDREG_FUSED
constexpr int kVectors = 4, kTileRows = 4;  // 24 of 32: fmla takes a word as an element of a register, one for each row
#elif defined(__aarch64__)
constexpr int kVectors = 3, kTileRows = 4;  // 20 of 32; a third more, and GCC has products wait on the stack
#else
constexpr int kVectors = 2, kTileRows = 4;  // 12 of 16, with a product that is no operand of its addition
#endif
constexpr int kPanel = kLanes * kVectors;
constexpr int kStepBlock = 128;

inline int64_t steps_for(int64_t columns, int per_step) {
  return (columns + kLanes - 1) / kLanes * (kLanes / per_step);  // whole vectors of features
}

// Words from one plain row to the next: rows whose distance is a power of two would share a few sets of the cache.
inline int64_t row_stride_for(int64_t steps) { return steps + 64 / int64_t(sizeof(uint32_t)); }

// Roundings a dot product can suffer: one for every product within a block of steps (none for integers, but three when a
// block's sum becomes a float and gets its units), one for every block.
template <class Operand>
int64_t dot_roundings(int64_t steps) {
  return (Operand::integer ? 3 : std::min<int64_t>(steps, kStepBlock) * Operand::per_step) + steps / kStepBlock + 1;
}

// products[r][lane] (+)= y[r] . q[lane] over `steps` steps; word s of row r is y[r * row_stride + s * StepStride].
// Integers are multiplied by the units of their rows.
template <class Operand, int StepStride>
LDREG_HOT void multiply_tile(const uint32_t* q, const float* q_units, const uint32_t* y, const float* y_units,
                             int64_t row_stride, int64_t steps, bool first, float* products) {
  using Sum = typename Operand::Sum;
  // Integers with AVX2 need a 17th register, for a product before its addition: their last lanes are read again for every
  // row, from an address that is no constant to the compiler. (Clang 14 has a sum wait on the stack else: 1.6 times slower.)
  constexpr bool again = Operand::integer && kVectorBytes == 32;
  Sum sum[kTileRows][kVectors] = {};
  for (int64_t s = 0; s < steps; ++s) {
    const uint32_t* lanes = q + s * kPanel;
    Words lane[kVectors];
    for (int v = 0; v < kVectors; ++v) lane[v] = load_raw<Words>(lanes + kLanes * v);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      if constexpr (again) {
        asm("" : "+r"(lanes));
        lane[kVectors - 1] = load_raw<Words>(lanes + kLanes * (kVectors - 1));
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) Operand::accumulate(sum[r][v], y[r * row_stride + s * StepStride], lane[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)  // unrolled as well: a loop would have the sums in memory from the start
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* out = products + r * kPanel + kLanes * v;
      Floats product = __builtin_convertvector(sum[r][v], Floats);
      if (Operand::integer) product *= load(q_units + kLanes * v) * y_units[r];
      // A block of steps is summed on its own and added once: continuing the old sum would round at every step of all.
      if (!first) product += load(out);
      std::memcpy(out, &product, sizeof product);
    }
}

// Packed panels of rows, and their products with references in either layout.
template <class T, class Operand>
class Panels {
 public:
  explicit Panels(int64_t columns) : steps_(steps_for(columns, Operand::per_step)) {}
  int64_t steps() const { return steps_; }
  void reserve(int64_t panels) { packed_.reserve(panels * steps_ * kPanel), units_.reserve(panels * kPanel); }

  // Panel p holds rows ids[0..count), of these units; lanes behind them, and rows with NaN or Inf, are 0.
  template <class Real>
  void pack(int64_t p, const Features<T>& x, const int* ids, int count, const Real* centre, Real scale,
            const float* units) {
    float inverse[kPanel];
    for (int lane = 0; lane < kPanel; ++lane) {
      const float unit = Operand::integer && lane < count ? units[ids[lane]] : 0;
      units_[p * kPanel + lane] = unit;
      inverse[lane] = unit > 0 ? 1 / unit : 0;
    }
    uint32_t* panel = packed_.get() + p * steps_ * kPanel;
    constexpr int words = 16;  // a cache line of every row at a time, so that what is written stays in L1
    for (int64_t from = 0; from < steps_; from += words) {
      const int64_t to = std::min(steps_, from + words);
      for (int lane = 0; lane < kPanel; ++lane) {
        uint32_t row[words] = {};
        if (lane < count && x.finite(ids[lane])) 
          x.template convert<Operand>(ids[lane], centre, scale, inverse[lane], from, to, row);
        for (int64_t s = from; s < to; ++s) panel[s * kPanel + lane] = row[s - from];
      }
    }
  }

  // products[panel][row][lane] of panels first..first+count with `rows` (a multiple of kTileRows) plain rows at y, which
  // are row_stride_for(steps()) apart and have these units.
  void multiply_rows(int64_t first, int64_t count, const uint32_t* y, const float* y_units, int rows,
                     float* products) const {
    const int64_t stride = row_stride_for(steps_);
    multiply<1>(first, count, rows, y_units, products, stride, [&](int r, int64_t s) { return y + r * stride + s; });
  }

  // The same with panels y_first.. (their kPanel lanes each are the rows).
  void multiply_panels(int64_t first, int64_t count, int64_t y_first, int64_t y_count, float* products) const {
    const float* y_units = units_.get() + y_first * kPanel;
    multiply<kPanel>(first, count, int(y_count * kPanel), y_units, products, 1, [&](int r, int64_t s) {
      return packed_.get() + ((y_first + r / kPanel) * steps_ + s) * kPanel + r % kPanel;
    });
  }

 private:
  template <int StepStride, class At>
  void multiply(int64_t first, int64_t count, int rows, const float* y_units, float* products, int64_t row_stride,
                At&& at) const {
    for (int64_t s = 0; s < steps_; s += kStepBlock) {
      const int64_t steps = std::min<int64_t>(kStepBlock, steps_ - s);
      for (int64_t p = 0; p < count; ++p) {
        const uint32_t* q = packed_.get() + ((first + p) * steps_ + s) * kPanel;
        for (int r = 0; r < rows; r += kTileRows)
          multiply_tile<Operand, StepStride>(q, units_.get() + (first + p) * kPanel, at(r, s), y_units + r, row_stride, steps,
                                             s == 0, products + (p * rows + r) * kPanel);
      }
    }
  }

  int64_t steps_;
  Buffer<uint32_t> packed_;
  Buffer<float> units_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
