// What the CPU kernels take and return: raw pointers and sizes, filled in by bindings_cpu.cpp. No behaviour.
#pragma once

#include <cstdint>

namespace ldreg {

enum class DType : int { f32, f64, bf16, f16 };

struct Matrix {
  const void* data;
  int64_t rows;
  int64_t stride;  // in elements; columns are contiguous
};

// Where row i of x sits in y, or -1.
struct SelfIndex {
  const int64_t* map;  // [B], or null
  int64_t offset;      // used without a map; negative: no row of x is in y
  int64_t of(int64_t i) const { return map ? map[i] : (offset < 0 ? -1 : offset + i); }
};

struct Problem {
  Matrix x, y;
  int64_t columns;
  DType dtype;
  bool same;  // y is x, row for row
  SelfIndex self;
  int k;               // neighbours wanted: the largest over everything asked for
  bool exact;          // false: precision="fast"
  bool drop_smallest;  // take k + 1, drop the nearest (published convention)
  int threads;
};

struct Track {
  int estimator;
  int k;
};

// Real is float, or double for double inputs.
struct KnnOutput {
  void* distances;   // [B, k] Real
  int64_t* indices;  // [B, k]
};

struct LidRequest {
  int estimator;
  int k;
  const Track* tracks;
  int track_count;
};

struct LidOutput {
  void* lid;            // [B] Real
  uint8_t* degenerate;  // [B]
  void* tracked;        // [T, B] Real
  void* grad;           // [B, D] Real, or null
};

// All pairs of unit rows x_i and candidates y_j; see kernels/contract.py.
struct PairsProblem {
  const float *x, *y;
  int64_t rows, candidates, columns, x_stride, y_stride;
  bool same;      // y is x
  float scale;
  bool softplus;  // the logits have a bias, and sums are of ln(1 + exp(logit))
  float bias;
  int64_t own;    // candidate own + i is row i, and left out; negative: none is
  int views;      // 2: and candidate own + (i + rows / 2) modulo rows
  int threads;
};

struct Control;

// One set of kernels per instruction set; `native_kernels()` picks.
struct Kernels {
  const char* isa;
  void (*knn)(const Problem&, const KnnOutput&, Control&);
  void (*lid)(const Problem&, const LidRequest&, const LidOutput&, Control&);
  // state [2, rows], by_value [rows], by_x [rows, columns], by_y [candidates, columns]. Gradients may be null; that of
  // pair_sums is for by_value = 1.
  void (*pair_sums)(const PairsProblem&, float* state, float* by_x, Control&);
  void (*pair_gradients)(const PairsProblem&, const float* state, const float* by_value, float* by_x, float* by_y, Control&);
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
extern const Kernels kernels_neon;
extern const Kernels kernels_neonbf16;

}  // namespace ldreg
