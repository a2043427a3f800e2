// From features to what the distance tile multiplies: centred, scaled, rounded rows, and how far rounding moved each.
//
// Distances do not change when the batch is centred and only change unit when it is scaled by a power of two, so both are
// free; centring removes the common component that ruins the matrix-product form (numerics: rho = |x|^2 / d_k^2). What
// rounding to the operand format does to row x is measured, not estimated: residual(x) = |x - rounded(x)| in the same
// unit, and by the triangle inequality every distance between rounded rows is within residual(x) + residual(y) of the
// true one. candidates.h builds its bounds on that. This file multiplies nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "problem.h"
#include "simd.h"

namespace ldreg {
inline namespace LDREG_ISA {

// The tile multiplies "steps" of four bytes: one float, or two bf16.
struct FloatOperand {
  static constexpr int per_step = 1;
  static f32x16 round(const f32x16& v) { return v; }
  static void store(const f32x16& v, void* out) { std::memcpy(out, &v, sizeof v); }
};

#if defined(__AVX512BF16__)
struct Bf16Operand {
  static constexpr int per_step = 2;
  static f32x16 round(const f32x16& v) {
    const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    return (f32x16)_mm512_slli_epi32(wide, 16);
  }
  static void store(const f32x16& v, void* out) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(out, &narrow, sizeof narrow);
  }
};
constexpr bool kHasBf16 = true;
#else
using Bf16Operand = FloatOperand;
constexpr bool kHasBf16 = false;
#endif

// Below this many features the tile is not what costs, and bf16's wider error bands only admit more candidates.
constexpr int64_t kBf16MinColumns = 48;

// 16 consecutive features as floats in the tile's unit: (row - mean) * scale.
template <class T>
inline f32x16 scaled16(const T* row, const typename Compute<T>::Real* centre, typename Compute<T>::Real scale, int64_t n) {
  if constexpr (lanes<T> == 16) {
    const f32x16 v = n >= 16 ? load(row) : load_tail(row, n);
    return v * scale - load(centre);
  } else {
    f32x8 halves[2] = {};
    for (int h = 0; h < 2 && n > 8 * h; ++h) {
      const f64x8 v = n >= 8 * h + 8 ? load(row + 8 * h) : load_tail(row + 8 * h, n - 8 * h);
      halves[h] = __builtin_convertvector(v * scale - load(centre + 8 * h), f32x8);
    }
    return load_raw<f32x16>(halves);
  }
}

template <class T>
class Features {
 public:
  using Real = typename Compute<T>::Real;

  Features(const Matrix& m, int64_t columns) : matrix_(m), columns_(columns) {}
  int64_t rows() const { return matrix_.rows; }
  const T* row(int64_t i) const { return static_cast<const T*>(matrix_.data) + i * matrix_.stride; }
  bool finite(int64_t i) const { return finite_[i]; }
  double largest() const { return largest_; }

  // Which rows are finite, and the largest magnitude among those.
  void scan(int threads, Control& control) {
    finite_.reserve(rows());
    const int64_t blocks = (rows() + kBlock - 1) / kBlock;
    Buffer<double> largest(blocks);
    auto body = [&](int64_t b) {
      double most = 0;
      for (int64_t i = b * kBlock; i < std::min(rows(), (b + 1) * kBlock); ++i) {
        const double m = largest_magnitude(row(i));
        finite_[i] = m < std::numeric_limits<double>::infinity();
        if (finite_[i]) most = std::max(most, m);
      }
      largest[b] = most;
    };
    parallel(blocks, threads, control, body);
    for (int64_t b = 0; b < blocks; ++b) largest_ = std::max(largest_, largest[b]);
  }

  // Squared norm of the rounded row and the residual of rounding, for both operand formats' error bounds.
  template <class Operand>
  void measure(const Real* centre, Real scale, int threads, Control& control, float* norms, float* residuals) const {
    auto body = [&](int64_t b) {
      for (int64_t i = b * kBlock; i < std::min(rows(), (b + 1) * kBlock); ++i) {
        f32x16 rounded = {}, residual = {}, original = {};
        const T* r = row(i);
        for (int64_t c = 0; c < columns_; c += 16) {
          const f32x16 v = mask_columns(scaled16(r + c, centre + c, scale, columns_ - c), columns_ - c);
          const f32x16 o = Operand::round(v), lost = v - o;
          rounded += o * o, residual += lost * lost, original += v * v;
        }
        // fl(x * scale - centre) itself is off by at most 2^-24 of its size (2^-23 leaves room for these sums).
        norms[i] = static_cast<float>(sum(rounded));
        residuals[i] = static_cast<float>(std::sqrt(sum(residual)) * 1.001 + 0x1p-23 * std::sqrt(sum(original))) + kUnderflow;
        if (exact_ && sum(residual) == 0) residuals[i] = 0;
      }
    };
    parallel((rows() + kBlock - 1) / kBlock, threads, control, body);
  }

  // Row i as the tile wants it: `steps` words of four bytes, zeros behind the last feature.
  template <class Operand>
  void convert(int64_t i, const Real* centre, Real scale, uint32_t* out, int64_t steps) const {
    const T* r = row(i);
    constexpr int words = 16 / Operand::per_step;
    for (int64_t c = 0, s = 0; s < steps; c += 16, s += words) {
      const f32x16 v = c < columns_ ? mask_columns(scaled16(r + c, centre + c, scale, columns_ - c), columns_ - c) : f32x16{};
      Operand::store(v, out + s);
    }
  }

  // The tile's unit loses nothing: no centre was subtracted, so x * scale is exact.
  void set_exact(bool exact) { exact_ = exact; }

 private:
  static constexpr int64_t kBlock = 64;
  static constexpr float kUnderflow = 1e-17f;  // squares of features below 1e-19 of the largest vanish in these sums

  template <class Body>
  void parallel(int64_t items, int threads, Control& control, Body& body) const {
    const double work = 0.25 * double(rows()) * double(columns_);
    parallel_items(items, threads, control, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body, work);
  }

  // Lanes at and behind column n hold 0 - centre; the padding must be 0.
  static f32x16 mask_columns(f32x16 v, int64_t n) {
    if (n < 16)
      for (int64_t c = n; c < 16; ++c) v[c] = 0;
    return v;
  }

  double largest_magnitude(const T* r) const {
    using Vec = typename Compute<T>::Vec;
    constexpr int w = lanes<T>;
    Vec most = {}, poison = {};
    for (int64_t c = 0; c < columns_; c += w) {
      const Vec v = columns_ - c >= w ? load(r + c) : load_tail(r + c, columns_ - c);
      const Vec a = v < 0 ? -v : v;
      most = a > most ? a : most;
      poison += v - v;  // 0 for finite, NaN for NaN and Inf
    }
    Real m = 0;
    for (int i = 0; i < w; ++i) m = std::max(m, most[i]);
    return sum(poison) == 0 ? double(m) : std::numeric_limits<double>::infinity();
  }

  Matrix matrix_;
  int64_t columns_;
  Buffer<uint8_t> finite_;
  double largest_ = 0;
  bool exact_ = false;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
