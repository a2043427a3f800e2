// Sixteen lanes on every machine: compiler vector types, with intrinsics only where the compiler has no way to say it.
//
// A 64-byte vector is one AVX-512 register, two AVX2 ones, four SSE or NEON ones; lane order, and so every sum, is the
// same on all of them. Also here: loading 16 (8) features of any dtype, with a tail shorter than a vector.
#pragma once

#include <cstdint>
#include <cstring>

#include "../lid_math.h"
#include "blocks.h"

#if LDREG_X86
#include <immintrin.h>
#endif

namespace ldreg {
inline namespace LDREG_ISA {

typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// The type distances and gradients are computed in, and its vector.
template <class T> struct Compute { using Real = float; using Vec = f32x16; };
template <> struct Compute<double> { using Real = double; using Vec = f64x8; };
template <class T> constexpr int lanes = 64 / sizeof(typename Compute<T>::Real);

template <class V, class T>
inline V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline f32x16 load(const float* p) { return load_raw<f32x16>(p); }
inline f64x8 load(const double* p) { return load_raw<f64x8>(p); }
inline f32x16 load(const bf16* p) {
  return (f32x16)(__builtin_convertvector(load_raw<u16x16>(p), u32x16) << 16);
}
inline f32x16 load(const f16* p) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
  // Half to float by arithmetic: put exponent and mantissa in place, rescale by 2^112, patch Inf and NaN.
  const u32x16 bits = __builtin_convertvector(load_raw<u16x16>(p), u32x16);
  const u32x16 magnitude = (bits & 0x7fffu) << 13;
  const f32x16 scaled = (f32x16)magnitude * 0x1p112f;
  const u32x16 special = (u32x16)((i32x16)(bits & 0x7c00u) == 0x7c00) & 0x7f800000u;
  return (f32x16)((u32x16)scaled | special | ((bits & 0x8000u) << 16));
#endif
}

// The first n < lanes elements, zeros behind them.
template <class T>
inline typename Compute<T>::Vec load_tail(const T* p, int64_t n) {
  T buffer[lanes<T>] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

// All lanes in eight doubles: adding up sixteen floats in float would cost more accuracy than all that went before.
inline f64x8 widen(const f64x8& v) { return v; }
inline f64x8 widen(const f32x16& v) {
  f32x8 halves[2];
  std::memcpy(halves, &v, sizeof v);
  return __builtin_convertvector(halves[0], f64x8) + __builtin_convertvector(halves[1], f64x8);
}

// out[r] = the sum of v[r]'s lanes: four sums share three levels of additions.
inline void sum_each(const f64x8 (&v)[4], double* out) {
  f64x8 pair[2];  // [v0 v1 v0 v1 v0 v1 v0 v1]: each entry two lanes of its vector
  for (int p = 0; p < 2; ++p)
    pair[p] = __builtin_shufflevector(v[2 * p], v[2 * p + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
              __builtin_shufflevector(v[2 * p], v[2 * p + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  const f64x8 quad = __builtin_shufflevector(pair[0], pair[1], 0, 1, 8, 9, 4, 5, 12, 13) +
                     __builtin_shufflevector(pair[0], pair[1], 2, 3, 10, 11, 6, 7, 14, 15);
  for (int r = 0; r < 4; ++r) out[r] = quad[r] + quad[r + 4];
}

template <class V>
inline double sum(const V& v) {
  const f64x8 wide[4] = {widen(v), {}, {}, {}};
  double out[4];
  sum_each(wide, out);
  return out[0];
}

// base[index[i]] for sixteen indices.
inline f32x16 gather(const float* base, const i32x16& index) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_i32gather_ps((__m512i)index, base, 4);
#else
  f32x16 v;
  for (int i = 0; i < 16; ++i) v[i] = base[index[i]];
  return v;
#endif
}

// Write the lanes whose bit is set to out, in order; up to 16 elements from out on may be overwritten.
template <class V>
inline void compress(void* out, const V& v, unsigned mask) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask), (__m512i)v));
#else
  auto* to = static_cast<std::remove_cv_t<std::remove_reference_t<decltype(v[0])>>*>(out);
  for (int i = 0; i < 16; ++i) *to = v[i], to += mask >> i & 1;
#endif
}

// Bit i set where a[i] <= b[i]; NaN compares false.
inline unsigned mask_less_equal(const f32x16& a, const f32x16& b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif defined(__AVX__)
  __m256 a2[2], b2[2];
  std::memcpy(a2, &a, 64), std::memcpy(b2, &b, 64);
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a2[0], b2[0], _CMP_LE_OQ))) |
         unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a2[1], b2[1], _CMP_LE_OQ))) << 8;
#else
  const i32x16 m = a <= b;
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned(m[i] & 1) << i;
  return mask;
#endif
}

// Cache-line aligned scratch that grows and never shrinks; contents are not kept. (std::vector would be instantiated with
// this unit's instruction set and shared by the linker.)
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) { reserve(n); }
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* reserve(int64_t n) {
    if (size_t(n) * sizeof(T) > bytes_) {
      release();
      size_t bytes = size_t(n) * sizeof(T);
      data_ = static_cast<T*>(take_block(&bytes));
      bytes_ = bytes;
    }
    return data_;
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  void release() {
    if (data_) give_block(data_, bytes_);
    data_ = nullptr, bytes_ = 0;
  }

  T* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
