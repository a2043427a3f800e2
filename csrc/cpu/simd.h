// Vectors as wide as this unit's instruction set: compiler vector types, with intrinsics where the compiler has no way to
// say it, or says it badly.
//
// 64 bytes with AVX-512, 32 with AVX2, 16 elsewhere (SSE2, NEON). A wider type than the registers would pass every sum
// through memory: GCC has no mode for it. Here: loading kLanes features of any dtype, with a tail shorter than a vector;
// sums over lanes; gather, compress and comparison masks. Nothing here knows what the numbers mean.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../lid_math.h"
#include "blocks.h"

#if LDREG_X86
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// A test may ask for wider vectors than the machine's, to run the code of a set that the machine lacks.
#if defined(LDREG_VECTOR_BYTES)
#elif defined(__AVX512F__)
#define LDREG_VECTOR_BYTES 64
#define LDREG_SIMD_AVX512 1
#elif defined(__AVX2__)
#define LDREG_VECTOR_BYTES 32
#define LDREG_SIMD_AVX2 1
#else
#define LDREG_VECTOR_BYTES 16
#if LDREG_X86 && defined(__SSE2__)
#define LDREG_SIMD_SSE2 1
#elif defined(__aarch64__)
#define LDREG_SIMD_NEON 1
#endif
#endif

// A loop worth a function of its own: compiled once, alike for all callers, and found by its name in the machine code.
#define LDREG_HOT __attribute__((noinline))

namespace ldreg {
inline namespace LDREG_ISA {

constexpr int kVectorBytes = LDREG_VECTOR_BYTES;
constexpr int kLanes = kVectorBytes / 4;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// The type distances and gradients are computed in, and its vector.
template <class T> struct Compute { using Real = float; using Vec = Floats; };
template <> struct Compute<double> { using Real = double; using Vec = Doubles; };
template <class T> constexpr int lanes = kVectorBytes / sizeof(typename Compute<T>::Real);

template <class V, class T>
inline V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const float* p) { return load_raw<Floats>(p); }
inline Doubles load(const double* p) { return load_raw<Doubles>(p); }
inline Floats load(const bf16* p) {
#if LDREG_SIMD_AVX512
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif LDREG_SIMD_AVX2
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#elif LDREG_SIMD_SSE2
  return (Floats)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif LDREG_SIMD_NEON
  return (Floats)vshll_n_u16((uint16x4_t)load_raw<HalfWords>(p), 16);
#else
  return (Floats)(__builtin_convertvector(load_raw<HalfWords>(p), Words) << 16);
#endif
}
inline Floats load(const f16* p) {
#if LDREG_SIMD_AVX512
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif LDREG_SIMD_AVX2
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif LDREG_SIMD_NEON
  return (Floats)vcvt_f32_f16((float16x4_t)load_raw<HalfWords>(p));  // GCC 12 stores sums around every vld1
#else
  // Half to float by arithmetic: exponent and mantissa in place below the sign, times 2^112; then patch Inf and NaN.
#if LDREG_SIMD_SSE2
  const Words high =
      (Words)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  const Words high = __builtin_convertvector(load_raw<HalfWords>(p), Words) << 16;
#endif
  const Words placed = (Words)((Ints)high >> 3) & 0x8fffe000u;
  const Words special = (Words)((placed & 0x0f800000u) == 0x0f800000u) & 0x7f800000u;
  return (Floats)((Words)((Floats)placed * 0x1p112f) | special);
#endif
}

// The first n < lanes elements, zeros behind them.
template <class T>
inline typename Compute<T>::Vec load_tail(const T* p, int64_t n) {
  T buffer[lanes<T>] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

// The lower and the upper half of the lanes, in double: adding up floats in float would cost more accuracy than all that
// went before.
inline void split(const Floats& v, Doubles* low, Doubles* high) {
#if LDREG_SIMD_AVX512
  *low = (Doubles)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
  *high = (Doubles)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif LDREG_SIMD_AVX2
  *low = (Doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  *high = (Doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#elif LDREG_SIMD_SSE2
  *low = (Doubles)_mm_cvtps_pd((__m128)v), *high = (Doubles)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v));
#elif LDREG_SIMD_NEON
  *low = (Doubles)vcvt_f64_f32(vget_low_f32((float32x4_t)v)), *high = (Doubles)vcvt_high_f64_f32((float32x4_t)v);
#else
  HalfFloats halves[2];
  std::memcpy(halves, &v, sizeof v);
  *low = __builtin_convertvector(halves[0], Doubles), *high = __builtin_convertvector(halves[1], Doubles);
#endif
}

inline Doubles widen(const Doubles& v) { return v; }
inline Doubles widen(const Floats& v) {
  Doubles low, high;
  split(v, &low, &high);
  return low + high;
}

// to[0..lanes) += v, in double.
inline void add_to(double* to, const Doubles& v) {
  const Doubles sum = load(to) + v;
  std::memcpy(to, &sum, sizeof sum);
}
inline void add_to(double* to, const Floats& v) {
  Doubles low, high;
  split(v, &low, &high);
  add_to(to, low), add_to(to + kLanes / 2, high);
}

// out[r] = the sum of v[r]'s lanes: four sums share their additions.
inline void sum_each(const Doubles (&v)[4], double* out) {
#if LDREG_VECTOR_BYTES == 64
  Doubles pair[2];  // [v0 v1 v0 v1 v0 v1 v0 v1]: each entry two lanes of its vector
  for (int p = 0; p < 2; ++p)
    pair[p] = __builtin_shufflevector(v[2 * p], v[2 * p + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
              __builtin_shufflevector(v[2 * p], v[2 * p + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  const Doubles quad = __builtin_shufflevector(pair[0], pair[1], 0, 1, 8, 9, 4, 5, 12, 13) +
                       __builtin_shufflevector(pair[0], pair[1], 2, 3, 10, 11, 6, 7, 14, 15);
  for (int r = 0; r < 4; ++r) out[r] = quad[r] + quad[r + 4];
#elif LDREG_VECTOR_BYTES == 32
  Doubles pair[2];  // [v0 v1 v0 v1]
  for (int p = 0; p < 2; ++p)
    pair[p] = __builtin_shufflevector(v[2 * p], v[2 * p + 1], 0, 4, 2, 6) +
              __builtin_shufflevector(v[2 * p], v[2 * p + 1], 1, 5, 3, 7);
  const Doubles quad =
      __builtin_shufflevector(pair[0], pair[1], 0, 1, 4, 5) + __builtin_shufflevector(pair[0], pair[1], 2, 3, 6, 7);
  std::memcpy(out, &quad, sizeof quad);
#else
  for (int p = 0; p < 2; ++p) {
    const Doubles pair = __builtin_shufflevector(v[2 * p], v[2 * p + 1], 0, 2) +
                         __builtin_shufflevector(v[2 * p], v[2 * p + 1], 1, 3);
    std::memcpy(out + 2 * p, &pair, sizeof pair);
  }
#endif
}

template <class V>
inline double sum(const V& v) {
  const Doubles wide[4] = {widen(v), {}, {}, {}};
  double out[4];
  sum_each(wide, out);
  return out[0];
}

// base[index[l]] for kLanes indices.
inline Floats gather(const float* base, const int* index) {
#if LDREG_SIMD_AVX512
  return (Floats)_mm512_i32gather_ps(_mm512_loadu_si512(index), base, 4);
#elif LDREG_SIMD_AVX2  // loads and inserts: no slower than the instruction, and much faster where that is patched
  return Floats{base[index[0]], base[index[1]], base[index[2]], base[index[3]],
                base[index[4]], base[index[5]], base[index[6]], base[index[7]]};
#else
  Floats v;
  for (int l = 0; l < kLanes; ++l) v[l] = base[index[l]];
  return v;
#endif
}

#if LDREG_SIMD_AVX2
// For every mask of eight lanes, the lanes whose bit is set, in order, one byte each.
struct LaneTable {
  uint64_t lanes[256];
  constexpr LaneTable() : lanes() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 7; lane >= 0; --lane)
        if (mask >> lane & 1) lanes[mask] = lanes[mask] << 8 | uint64_t(lane);
  }
};
inline constexpr LaneTable kLaneTable;
#endif

// Write the lanes whose bit is set to out, in order; up to kLanes elements from out on may be overwritten.
template <class V>
inline void compress(void* out, const V& v, unsigned mask) {
#if LDREG_SIMD_AVX512
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask), (__m512i)v));
#elif LDREG_SIMD_AVX2
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kLaneTable.lanes[mask])));
  _mm256_storeu_si256(static_cast<__m256i*>(out), _mm256_permutevar8x32_epi32((__m256i)v, order));
#else
  auto* to = static_cast<std::remove_cv_t<std::remove_reference_t<decltype(v[0])>>*>(out);
  for (int l = 0; l < kLanes; ++l) *to = v[l], to += mask >> l & 1;
#endif
}

// Bit l set where a[l] <= b[l]; NaN compares false.
inline unsigned mask_less_equal(const Floats& a, const Floats& b) {
#if LDREG_SIMD_AVX512
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif LDREG_SIMD_AVX2
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ)));
#elif LDREG_SIMD_SSE2
  return unsigned(_mm_movemask_ps(_mm_cmple_ps((__m128)a, (__m128)b)));
#elif LDREG_SIMD_NEON
  return vaddvq_u32(vandq_u32(vcleq_f32((float32x4_t)a, (float32x4_t)b), uint32x4_t{1, 2, 4, 8}));
#else
  const Ints m = a <= b;
  unsigned mask = 0;
  for (int l = 0; l < kLanes; ++l) mask |= unsigned(m[l] & 1) << l;
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
