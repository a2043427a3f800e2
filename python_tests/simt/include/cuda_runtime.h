// Stands in for CUDA's header of this name when kernels are compiled for the machine of simt.h: keywords, intrinsics,
// vector types, and as much of the runtime's interface as host code needs to compile.
//
// `kernel<<<...>>>` is no C++, and `extern __shared__` has no counterpart: launch by simt::launch, and take shared
// memory from simt::shared_memory(). Compile with -ffp-contract=off if the processor's flags allow fused operations.
#pragma once

#define LDREG_SIMT 1

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>

#include "../simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // libstdc++ writes __attribute__((__noinline__)), which has to stay valid
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---------------------------------------------------------------- vector types

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---------------------------------------------------------------- shared memory

// As on the GPU, the first 1 KB of the shared addresses is not the kernel's.
inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - simt::shared_memory()) + 1024;
}
inline void* __cvta_shared_to_generic(size_t address) { return simt::shared_memory() + address - 1024; }

// ---------------------------------------------------------------- barriers and fences

inline void __syncthreads() { simt::barrier(0, static_cast<int>(blockDim.x)); }
inline void __syncwarp(unsigned mask = ~0u) {
  simt::detail::collective(simt::detail::Collective::syncwarp, simt::detail::Type::none, mask, 0);
}

// Threads take turns, so memory is in order anyway. Fences are where a missing one would show, hence switch points.
inline void __threadfence() {
  asm volatile("" ::: "memory");
  simt::detail::switch_point();
  simt::detail::poll();
}
inline void __threadfence_block() { __threadfence(); }
inline void __nanosleep(unsigned) { simt::yield(); }
inline void __trap() { simt::detail::trap("__trap()"); }

// ---------------------------------------------------------------- warp collectives

#define LDREG_SIMT_COLLECTIVE(op, type, mask, value, argument, width)                                      \
  simt::detail::collective(simt::detail::Collective::op, simt::detail::Type::type, mask,                   \
                           simt::detail::to_bits(value), static_cast<int>(argument), width)
#define LDREG_SIMT_SHUFFLES(T, type)                                                                       \
  inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {                                 \
    return simt::detail::from_bits<T>(LDREG_SIMT_COLLECTIVE(shfl, type, mask, value, lane, width));        \
  }                                                                                                        \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {                        \
    return simt::detail::from_bits<T>(LDREG_SIMT_COLLECTIVE(shfl_up, type, mask, value, delta, width));    \
  }                                                                                                        \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {                      \
    return simt::detail::from_bits<T>(LDREG_SIMT_COLLECTIVE(shfl_down, type, mask, value, delta, width));  \
  }                                                                                                        \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {                            \
    return simt::detail::from_bits<T>(LDREG_SIMT_COLLECTIVE(shfl_xor, type, mask, value, lanes, width));   \
  }
LDREG_SIMT_SHUFFLES(int, i32)
LDREG_SIMT_SHUFFLES(unsigned, u32)
LDREG_SIMT_SHUFFLES(long, i64)
LDREG_SIMT_SHUFFLES(unsigned long, u64)
LDREG_SIMT_SHUFFLES(long long, i64)
LDREG_SIMT_SHUFFLES(unsigned long long, u64)
LDREG_SIMT_SHUFFLES(float, f32)
LDREG_SIMT_SHUFFLES(double, f64)
#undef LDREG_SIMT_SHUFFLES

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(LDREG_SIMT_COLLECTIVE(ballot, none, mask, predicate, 0, 32));
}
inline int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(LDREG_SIMT_COLLECTIVE(any, none, mask, predicate, 0, 32));
}
inline int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(LDREG_SIMT_COLLECTIVE(all, none, mask, predicate, 0, 32));
}

#define LDREG_SIMT_REDUCE(name, op, T, type)                                                               \
  inline T name(unsigned mask, T value) {                                                                  \
    return simt::detail::from_bits<T>(LDREG_SIMT_COLLECTIVE(op, type, mask, value, 0, 32));                \
  }
LDREG_SIMT_REDUCE(__reduce_add_sync, reduce_add, int, i32)
LDREG_SIMT_REDUCE(__reduce_add_sync, reduce_add, unsigned, u32)
LDREG_SIMT_REDUCE(__reduce_min_sync, reduce_min, int, i32)
LDREG_SIMT_REDUCE(__reduce_min_sync, reduce_min, unsigned, u32)
LDREG_SIMT_REDUCE(__reduce_max_sync, reduce_max, int, i32)
LDREG_SIMT_REDUCE(__reduce_max_sync, reduce_max, unsigned, u32)
LDREG_SIMT_REDUCE(__reduce_and_sync, reduce_and, unsigned, u32)
LDREG_SIMT_REDUCE(__reduce_or_sync, reduce_or, unsigned, u32)
LDREG_SIMT_REDUCE(__reduce_xor_sync, reduce_xor, unsigned, u32)
#undef LDREG_SIMT_REDUCE
#undef LDREG_SIMT_COLLECTIVE

// ---------------------------------------------------------------- atomics

#define LDREG_SIMT_ATOMIC(name, T, expression)                                                             \
  inline T name(T* address, T value) {                                                                     \
    return simt::detail::atomic(address, [value](T old) -> T { return expression; });                      \
  }
// Signed sums wrap on the GPU.
inline int atomicAdd(int* address, int value) {
  return simt::detail::atomic(address, [value](int old) {
    return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  });
}
LDREG_SIMT_ATOMIC(atomicAdd, unsigned, old + value)
LDREG_SIMT_ATOMIC(atomicAdd, unsigned long long, old + value)
LDREG_SIMT_ATOMIC(atomicAdd, float, old + value)
LDREG_SIMT_ATOMIC(atomicAdd, double, old + value)
LDREG_SIMT_ATOMIC(atomicSub, unsigned, old - value)
LDREG_SIMT_ATOMIC(atomicMax, int, old < value ? value : old)
LDREG_SIMT_ATOMIC(atomicMax, unsigned, old < value ? value : old)
LDREG_SIMT_ATOMIC(atomicMax, long long, old < value ? value : old)
LDREG_SIMT_ATOMIC(atomicMax, unsigned long long, old < value ? value : old)
LDREG_SIMT_ATOMIC(atomicMin, int, value < old ? value : old)
LDREG_SIMT_ATOMIC(atomicMin, unsigned, value < old ? value : old)
LDREG_SIMT_ATOMIC(atomicMin, long long, value < old ? value : old)
LDREG_SIMT_ATOMIC(atomicMin, unsigned long long, value < old ? value : old)
LDREG_SIMT_ATOMIC(atomicAnd, int, old & value)
LDREG_SIMT_ATOMIC(atomicAnd, unsigned, old & value)
LDREG_SIMT_ATOMIC(atomicOr, int, old | value)
LDREG_SIMT_ATOMIC(atomicOr, unsigned, old | value)
LDREG_SIMT_ATOMIC(atomicExch, int, (void(old), value))
LDREG_SIMT_ATOMIC(atomicExch, unsigned, (void(old), value))
LDREG_SIMT_ATOMIC(atomicExch, unsigned long long, (void(old), value))
LDREG_SIMT_ATOMIC(atomicExch, float, (void(old), value))
#undef LDREG_SIMT_ATOMIC

#define LDREG_SIMT_CAS(T)                                                                                  \
  inline T atomicCAS(T* address, T compare, T value) {                                                     \
    return simt::detail::atomic(address, [=](T old) -> T { return old == compare ? value : old; });        \
  }
LDREG_SIMT_CAS(int)
LDREG_SIMT_CAS(unsigned)
LDREG_SIMT_CAS(unsigned long long)
#undef LDREG_SIMT_CAS

// ---------------------------------------------------------------- loads and stores with a cache hint

// Past the L1 cache, so this may be a loop that waits for another block.
template <class T>
T __ldcg(const T* address) {
  asm volatile("" ::: "memory");
  simt::detail::poll();
  return *address;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

// ---------------------------------------------------------------- bits and arithmetic

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }

inline int __float_as_int(float x) { return simt::detail::from_bits<int>(simt::detail::to_bits(x)); }
inline float __int_as_float(int x) { return simt::detail::from_bits<float>(simt::detail::to_bits(x)); }
inline unsigned __float_as_uint(float x) { return simt::detail::from_bits<unsigned>(simt::detail::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return simt::detail::from_bits<float>(simt::detail::to_bits(x)); }
inline long long __double_as_longlong(double x) { return simt::detail::from_bits<long long>(simt::detail::to_bits(x)); }
inline double __longlong_as_double(long long x) { return simt::detail::from_bits<double>(simt::detail::to_bits(x)); }

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
// Correctly rounded but for rare cases; the GPU's is within 2 units of the last place.
inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

#define LDREG_SIMT_MIN_MAX(T)                                                                              \
  constexpr T min(T a, T b) { return b < a ? b : a; }                                                      \
  constexpr T max(T a, T b) { return a < b ? b : a; }
LDREG_SIMT_MIN_MAX(int)
LDREG_SIMT_MIN_MAX(unsigned)
LDREG_SIMT_MIN_MAX(long)
LDREG_SIMT_MIN_MAX(unsigned long)
LDREG_SIMT_MIN_MAX(long long)
LDREG_SIMT_MIN_MAX(unsigned long long)
#undef LDREG_SIMT_MIN_MAX
constexpr unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
constexpr unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
constexpr unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
constexpr unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
// A NaN loses against a number, as there. Of -0 and +0 these may return either.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// ---------------------------------------------------------------- the runtime, as host code sees it

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

namespace simt {
// What cudaDeviceGetAttribute and the occupancy calculator say. The machine itself does not look at them.
inline int multiprocessors = 3;
inline int blocks_per_multiprocessor = 1;
}  // namespace simt

inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaSuccess ? "cudaSuccess" : e == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "cudaError";
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : "error of the test machine";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <class T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  *data = static_cast<T*>(aligned_alloc(256, (bytes + 255) / 256 * 256));
  return *data || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* data) { return free(data), cudaSuccess; }
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) { return memset(data, value, bytes), cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t = nullptr) {
  return cudaMemset(data, value, bytes);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
  return cudaMemcpy(to, from, bytes, kind);
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
// LDREG_SIMT_CAPTURING in the environment: every stream says that it is being captured.
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = std::getenv("LDREG_SIMT_CAPTURING") ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

template <class Function>
cudaError_t cudaFuncSetAttribute(Function, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Function>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function, int, size_t) {
  return *blocks = simt::blocks_per_multiprocessor, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: {
      const char* other = std::getenv("LDREG_SIMT_MULTIPROCESSORS");  // for tests of plans
      return *value = other ? std::atoi(other) : simt::multiprocessors, cudaSuccess;
    }
    case cudaDevAttrComputeCapabilityMajor: return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return *value = 233472, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: {
      const char* other = std::getenv("LDREG_SIMT_SHARED");  // bytes, for tests of plans
      return *value = other ? std::atoi(other) : 232448, cudaSuccess;
    }
  }
  return cudaErrorInvalidValue;
}
