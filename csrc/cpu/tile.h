// The distance tile: dot products of a block of queries with a chunk of reference rows, near the machine's matrix rate.
//
// Queries sit in the vector lanes, packed in panels [step][PANEL]; reference rows stay row-major and are broadcast four
// bytes at a time, so references, which stream through once for every block of queries, need no transposition. Steps are
// taken kStepBlock at a time: a panel's share (24 KB) stays in L1, and the running sums are short enough for a
// tight rounding bound (`dot_roundings`). It knows nothing about distances or selection.
#pragma once

#include "operands.h"

namespace ldreg {
inline namespace LDREG_ISA {

#if defined(__AVX512F__)
constexpr int kVectors = 3, kTileRows = 8;  // 24 accumulators of 32 registers
#else
constexpr int kVectors = 1, kTileRows = 6;  // with AVX2: 12 of 16
#endif
constexpr int kPanel = 16 * kVectors;
constexpr int kStepBlock = 128;

inline int64_t steps_for(int64_t columns, int per_step) {
  const int words = 16 / per_step;  // whole vectors of 16 features
  return (columns + 15) / 16 * words;
}

// Roundings a dot product can suffer: one for every product within a block of steps, one for every block.
inline int64_t dot_roundings(int64_t steps, int per_step) {
  return std::min<int64_t>(steps, kStepBlock) * per_step + steps / kStepBlock + 1;
}

template <class Operand>
inline void multiply_accumulate(f32x16& sum, uint32_t y, const u32x16& q) {
#if defined(__AVX512BF16__)
  if constexpr (Operand::per_step == 2) {
    sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(y)), (__m512bh)q);
    return;
  }
#endif
  float f;
  std::memcpy(&f, &y, sizeof f);
  sum += f * (f32x16)q;
}

// products[r][lane] (+)= y[r] . q[lane] over `steps` steps; y rows are `stride` words apart.
template <class Operand>
inline void multiply_tile(const uint32_t* q, const uint32_t* y, int64_t stride, int64_t steps, bool first, float* products) {
  f32x16 sum[kTileRows][kVectors];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = first ? f32x16{} : load(products + r * kPanel + 16 * v);
  for (int64_t s = 0; s < steps; ++s) {
    u32x16 lane[kVectors];
    for (int v = 0; v < kVectors; ++v) lane[v] = load_raw<u32x16>(q + s * kPanel + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) multiply_accumulate<Operand>(sum[r][v], y[r * stride + s], lane[v]);
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVectors; ++v) std::memcpy(products + r * kPanel + 16 * v, &sum[r][v], 64);
}

// A block of queries, packed once and multiplied with every chunk of references.
template <class T, class Operand>
class QueryPanels {
 public:
  QueryPanels(int64_t columns) : steps_(steps_for(columns, Operand::per_step)) {}
  int64_t steps() const { return steps_; }
  int panels() const { return panels_; }

  template <class Real>
  void pack(const Features<T>& x, const int* ids, int count, const Real* centre, Real scale) {
    panels_ = (count + kPanel - 1) / kPanel;
    uint32_t* packed = packed_.reserve(panels_ * steps_ * kPanel);
    uint32_t* row = row_.reserve(steps_);
    for (int lane = 0; lane < panels_ * kPanel; ++lane) {
      if (lane < count && x.finite(ids[lane])) x.template convert<Operand>(ids[lane], centre, scale, row, steps_);
      else std::memset(row, 0, steps_ * sizeof *row);
      uint32_t* out = packed + lane / kPanel * steps_ * kPanel + lane % kPanel;
      for (int64_t s = 0; s < steps_; ++s) out[s * kPanel] = row[s];
    }
  }

  // products[panel][row][lane] for `rows` (a multiple of kTileRows) converted reference rows.
  void multiply(const uint32_t* y, int rows, float* products) const {
    for (int64_t s = 0; s < steps_; s += kStepBlock) {
      const int64_t steps = std::min<int64_t>(kStepBlock, steps_ - s);
      for (int p = 0; p < panels_; ++p)
        for (int r = 0; r < rows; r += kTileRows)
          multiply_tile<Operand>(packed_.get() + (p * steps_ + s) * kPanel, y + r * steps_ + s, steps_, steps, s == 0,
                                 products + (int64_t(p) * rows + r) * kPanel);
    }
  }

 private:
  int64_t steps_;
  int panels_ = 0;
  Buffer<uint32_t> packed_, row_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
