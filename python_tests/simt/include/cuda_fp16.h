// Stands in for CUDA's header of this name on the machine of simt.h: __half as storage and its conversions, rounded to
// nearest even. No arithmetic.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short __x;
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half h) { return h.__x; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half h) {
  const unsigned sign = static_cast<unsigned>(h.__x & 0x8000) << 16;
  const unsigned exponent = h.__x >> 10 & 31, fraction = h.__x & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000 | fraction << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal, exact
  return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  const auto half_of = [](unsigned h) { return __half{static_cast<unsigned short>(h)}; };
  if (magnitude > 0x7F800000) return half_of(0x7FFF);           // every NaN becomes this one
  if (magnitude >= 0x47800000) return half_of(sign | 0x7C00);   // 65536 and more
  if (magnitude < 0x33000000) return half_of(sign);             // less than half of the smallest subnormal
  const unsigned exponent = magnitude >> 23;
  const unsigned significand = (magnitude & 0x7FFFFF) | 0x800000;
  const unsigned drop = exponent < 113 ? 126 - exponent : 13;   // bits to lose; in subnormals more than 13
  unsigned kept = significand >> drop;
  const unsigned rest = significand & ((1u << drop) - 1), middle = 1u << (drop - 1);
  kept += rest > middle || (rest == middle && (kept & 1));
  // The leading bit, and a carry, count as 1 in the exponent: rounding up may reach the next binade, or infinity.
  return half_of(sign | (exponent < 113 ? kept : kept + ((exponent - 113) << 10)));
}
inline __half __float2half(float f) { return __float2half_rn(f); }

inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
