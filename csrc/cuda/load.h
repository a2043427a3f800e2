// Reading features of any dtype, four at a time, as float or double.
//
// Contract: `load4` gives columns c..c+3 of a row, 0 from column D on. A row of an aligned matrix is read with one
// instruction, any other by single features; values and their order are the same, so results do not depend on layout.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.h"

namespace ldreg::cuda {

template <class T> struct Compute { using Real = float; };
template <> struct Compute<double> { using Real = double; };
template <class T> using RealOf = typename Compute<T>::Real;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};
template <>
struct alignas(16) Four<double> {
  double v[4];
};

template <class T>
__device__ inline void load4(const T* row, int c, int D, bool aligned, RealOf<T> (&out)[4]) {
  if (aligned) {
    Four<T> four = {};
    if (c < D) four = *global(reinterpret_cast<const Four<T>*>(row + c));
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = widen(four.v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = c + i < D ? widen(*global(row + c + i)) : RealOf<T>(0);
  }
}

// Columns c..c+3, c + stride..., as many groups of four as fit: 0 from column D on. All loads are under way before the
// first is used.
template <class T, int kValues>
__device__ __forceinline__ void load_groups(const T* row, int c, int stride, int D, bool aligned, RealOf<T> (&out)[kValues]) {
  c = opaque(c);
  if (aligned) {
    Four<T> four[kValues / 4];
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      four[i] = {};
      if (c + i * stride < D) four[i] = *global(reinterpret_cast<const Four<T>*>(row + c + i * stride));
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) out[i] = widen(four[i / 4].v[i % 4]);
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int column = c + i / 4 * stride + i % 4;
      out[i] = column < D ? widen(*global(row + column)) : RealOf<T>(0);
    }
  }
}

// A power of two such that features times it reach 2^48 (2^500 in double), from the bits of the largest: then no sum of
// squares overflows. Differences have all their digits down to 1e-52 of the largest feature (1e-304 in double, whose squares
// end there). It and its inverse are normal.
__device__ inline double unit_of(unsigned long long largest, float) {
  const int exponent = int(unsigned(largest) >> 23) - 127;
  const int e = 48 - exponent > 126 ? 126 : 48 - exponent < -126 ? -126 : 48 - exponent;
  return __longlong_as_double((long long)(e + 1023) << 52);
}

__device__ inline double unit_of(unsigned long long largest, double) {
  const int exponent = int(largest >> 52) - 1023;
  const int e = 500 - exponent > 1022 ? 1022 : 500 - exponent < -1022 ? -1022 : 500 - exponent;
  return __longlong_as_double((long long)(e + 1023) << 52);
}

__device__ inline unsigned long long bits_of(float v) { return unsigned(__float_as_int(v)); }
__device__ inline unsigned long long bits_of(double v) { return (unsigned long long)__double_as_longlong(v); }

}  // namespace ldreg::cuda
