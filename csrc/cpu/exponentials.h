// Exponentials on vectors of floats: what softmax and softplus need, to two roundings or so.
#pragma once

#include "simd.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr float kLog2E = 1.44269504088896340736f;

inline Floats splat(float value) { return Floats{} + value; }

// 2^x for x < 128; 0 below 2^-125, also for -inf. A NaN stays one.
inline Floats exp2_of(const Floats& x) {
  const Floats t = x < -126.0f ? splat(-126.0f) : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const Floats shifted = t + 0x1.8p23f;
  const Floats r = t - (shifted - 0x1.8p23f);  // [-1/2, 1/2]
  const Ints n = (Ints)shifted - (Ints)splat(0x1.8p23f);
  // 2^r = 1 + r p(r), minimax: relative error 2e-9.
  Floats p = r * 0x1.41fbbcp-13f + 0x1.5f3e54p-10f;
  p = p * r + 0x1.3b2d4cp-7f;
  p = p * r + 0x1.c6aee8p-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
  const Floats power = p * (Floats)((n + 127) << 23);
  return x < -125.0f ? Floats{} : power;
}

// ln(1 + y) for 0 <= y <= 1, relative to the result: 2 atanh(s) with s = y / (2 + y) <= 1/3, by its series.
inline Floats log1p_of(const Floats& y) {
  const Floats s = y / (y + 2.0f), q = s * s;
  Floats p = q * (1.0f / 15) + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * s * (p * q + 1.0f);
}

// 1 / (1 + e^-a), given y = e^-|a|.
inline Floats sigmoid_of(const Floats& a, const Floats& y) { return (a < 0.0f ? y : splat(1.0f)) / (y + 1.0f); }

inline Floats exp_of_minus_magnitude(const Floats& a) { return exp2_of((a < 0.0f ? a : -a) * kLog2E); }

}  // namespace LDREG_ISA
}  // namespace ldreg
