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

// The tile multiplies "steps" of four bytes: one float, or two numbers of sixteen bits. `accumulate` adds one step: a
// reference's word times each lane's. Integers have a unit for each row, which `value` brings back into its sums.
struct FloatOperand {
  static constexpr int per_step = 1;
  static constexpr bool integer = false;
  using Sum = Floats;
  static Floats round(const Floats& v) { return v; }
  static void store(const Floats& v, void* out) { std::memcpy(out, &v, sizeof v); }
  static void accumulate(Floats& sum, uint32_t y, const Words& q) {
    float f;
    std::memcpy(&f, &y, sizeof f);
    sum += f * (Floats)q;
  }
};

#if LDREG_SIMD_AVX512 && defined(__AVX512BF16__)
struct Bf16Operand {
  static constexpr int per_step = 2;
  static constexpr bool integer = false;
  using Sum = Floats;
  static Floats round(const Floats& v) {
    const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    return (Floats)_mm512_slli_epi32(wide, 16);
  }
  static void store(const Floats& v, void* out) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(out, &narrow, sizeof narrow);
  }
  static void accumulate(Floats& sum, uint32_t y, const Words& q) {
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(y)), (__m512bh)q);
  }
};
using ShortOperand = Bf16Operand;
#elif LDREG_SIMD_NEON && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// bfdot rounds otherwise than AVX-512's dpbf16 (two fused multiply-adds, each to nearest), yet `dot_roundings` holds for
// both, in units of 2^-24. ARM's products are exact; the sum of a pair and its addition to the running sum are rounded
// to odd, by less than 2^-23 each. So n steps are off by at most 2^-23 of the products' magnitudes for the pairs and
// n - 1 times that for the additions, of which the first, to 0, is exact: 2n units, one for each product.
// Both flush denormal operands and results to 0: at most 2^-125 a product, far below kTiny (candidates.h). Where
// FPCR.EBF is set (FEAT_EBF16; nobody's default) a step is rounded once, to nearest.
struct Bf16Operand {
  static constexpr int per_step = 2;
  static constexpr bool integer = false;
  using Sum = Floats;
  static Floats round(const Floats& v) {
    return (Floats)vshll_n_u16(vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)v)), 16);
  }
  static void store(const Floats& v, void* out) {
    const bfloat16x4_t narrow = vcvt_bf16_f32((float32x4_t)v);
    std::memcpy(out, &narrow, sizeof narrow);
  }
  static void accumulate(Floats& sum, uint32_t y, const Words& q) {
    // Times an element of a register, as fmla does it: a broadcast would be one more instruction.
    sum = (Floats)vbfdotq_lane_f32((float32x4_t)sum, (bfloat16x8_t)q, vcreate_bf16(y), 0);
  }
};
using ShortOperand = Bf16Operand;
#elif defined(LDREG_TEST_OPERAND)  // a Bf16Operand in plain C++, for the code of a set that the machine lacks
#include LDREG_TEST_OPERAND
using ShortOperand = Bf16Operand;
#elif LDREG_SIMD_AVX2 || LDREG_SIMD_SSE2
// Rows as integers of up to `integer_limit`, in a unit of their own: twice the products of float in an instruction, as
// precise as bf16 at the least, and exact sums: a block of steps cannot overflow. (Not with AVX-512, which needs two
// instructions on the ports of one multiply-add for it; nor with NEON, whose products of integers are no wider.)
struct IntegerOperand {
  static constexpr int per_step = 2;
  static constexpr bool integer = true;
  using Sum = Ints;
  static Floats round(const Floats& v) { return __builtin_convertvector(nearest(v), Floats); }
  static Ints nearest(const Floats& v) {
#if LDREG_SIMD_AVX2
    return (Ints)_mm256_cvtps_epi32((__m256)v);
#else
    return (Ints)_mm_cvtps_epi32((__m128)v);
#endif
  }
  static void store(const Floats& v, void* out) {
#if LDREG_SIMD_AVX2
    const __m256i integers = (__m256i)nearest(v);
    const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers, integers), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(out), _mm256_castsi256_si128(narrow));
#else
    const __m128i integers = (__m128i)nearest(v);
    _mm_storel_epi64(static_cast<__m128i*>(out), _mm_packs_epi32(integers, integers));
#endif
  }
  static void accumulate(Ints& sum, uint32_t y, const Words& q) {
#if LDREG_SIMD_AVX2
    sum += (Ints)_mm256_madd_epi16(_mm256_set1_epi32(int(y)), (__m256i)q);
#else
    sum += (Ints)_mm_madd_epi16(_mm_set1_epi32(int(y)), (__m128i)q);
#endif
  }
};
using ShortOperand = IntegerOperand;
#else
using ShortOperand = FloatOperand;
#endif

// The largest integer whose products, `features` of them, an int32 can add up.
inline float integer_limit(int64_t features) {
  return static_cast<float>(std::min(32767.0, std::floor(std::sqrt(0x7fffffff / double(features)))));
}

// Below this many features the tile is not what costs, and wider error bands only admit more candidates.
constexpr int64_t kShortMinColumns = 48;

// kLanes consecutive features as floats in the tile's unit: (row - mean) * scale; zeros behind the n-th.
template <class T>
inline Floats scaled(const T* row, const typename Compute<T>::Real* centre, typename Compute<T>::Real scale, int64_t n) {
  constexpr int w = lanes<T>;
  Floats v;
  if constexpr (w == kLanes) {
    v = (n >= w ? load(row) : load_tail(row, n)) * scale - load(centre);
  } else {
    HalfFloats halves[2] = {};
    for (int h = 0; h < 2 && n > w * h; ++h) {
      const Doubles part = n >= w * (h + 1) ? load(row + w * h) : load_tail(row + w * h, n - w * h);
      halves[h] = __builtin_convertvector(part * scale - load(centre + w * h), HalfFloats);
    }
    v = load_raw<Floats>(halves);
  }
  for (int64_t c = n; c < kLanes; ++c) v[c] = 0;  // where 0 - centre stands
  return v;
}

// Vectors that one float sum may take before it goes on in double: a sum of n equal squares is off by up to n / 2
// roundings in the same direction, and 32 leave the distance within 5e-7.
constexpr int kSumSteps = 32;

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

  // Squared norm of the rounded row and the residual of rounding; for integers, the unit of each row.
  template <class Operand>
  void measure(const Real* centre, Real scale, float limit, int threads, Control& control, float* norms, float* residuals,
               float* units) const {
    auto body = [&](int64_t b) {
      for (int64_t i = b * kBlock; i < std::min(rows(), (b + 1) * kBlock); ++i) {
        const T* r = row(i);
        float unit = 1, inverse = 1;
        if (Operand::integer) {
          const float most = largest_scaled(r, centre, scale);
          unit = most > kSmallestUnit ? most / limit : 0, inverse = unit > 0 ? 1 / unit : 0;
          units[i] = unit;
        }
        Doubles all[4] = {};  // of rounded, residual, original
        for (int64_t from = 0; from < columns_; from += kSumSteps * kLanes) {
          Floats rounded = {}, residual = {}, original = {};
          for (int64_t c = from; c < std::min(columns_, from + kSumSteps * kLanes); c += kLanes) {
            const Floats v = scaled(r + c, centre + c, scale, columns_ - c);
            const Floats o = Operand::integer ? Operand::round(v * inverse) * unit : Operand::round(v), lost = v - o;
            rounded += o * o, residual += lost * lost, original += v * v;
          }
          all[0] += widen(rounded), all[1] += widen(residual), all[2] += widen(original);
        }
        double sums[4];
        sum_each(all, sums);
        // fl(x * scale - centre), and an integer times its unit, are off by at most 2^-24 of their size each (2^-22 leaves
        // room for these sums).
        norms[i] = static_cast<float>(sums[0]);
        residuals[i] = static_cast<float>(std::sqrt(sums[1]) * 1.001 + 0x1p-22 * std::sqrt(sums[2])) + kUnderflow;
        if (exact_ && sums[1] == 0) residuals[i] = 0;
      }
    };
    parallel((rows() + kBlock - 1) / kBlock, threads, control, body);
  }

  // Row i as the tile wants it: the words of steps first..last (whole vectors), zeros behind the last feature.
  template <class Operand>
  void convert(int64_t i, const Real* centre, Real scale, float inverse, int64_t first, int64_t last,
               uint32_t* out) const {
    const T* r = row(i);
    constexpr int words = kLanes / Operand::per_step;
    int64_t c = first * Operand::per_step;
    for (int64_t s = first; s < last; c += kLanes, s += words, out += words) {
      Floats v = scaled(r + c, centre + c, scale, columns_ - c);
      if (Operand::integer) v *= inverse;
      Operand::store(v, out);
    }
  }

  // The tile's unit loses nothing: no centre was subtracted, so x * scale is exact.
  void set_exact(bool exact) { exact_ = exact; }

 private:
  static constexpr int64_t kBlock = 64;
  static constexpr float kSmallestUnit = 1e-30f;  // rows below it are as good as 0 in the tile; their residual says so
  static constexpr float kUnderflow = 1e-17f;  // squares of features below 1e-19 of the largest vanish in these sums

  template <class Body>
  void parallel(int64_t items, int threads, Control& control, Body& body) const {
    const double work = 0.25 * double(rows()) * double(columns_);
    parallel_items(items, threads, control, [](void* b, int64_t item) { (*static_cast<Body*>(b))(item); }, &body, work);
  }

  float largest_scaled(const T* r, const Real* centre, Real scale) const {
    Floats most = {};
    for (int64_t c = 0; c < columns_; c += kLanes) {
      const Floats v = scaled(r + c, centre + c, scale, columns_ - c), a = v < 0 ? -v : v;
      most = a > most ? a : most;
    }
    float m = 0;
    for (int l = 0; l < kLanes; ++l) m = std::max(m, most[l]);
    return m;
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
