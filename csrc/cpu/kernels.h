// Instantiates the kernels for every dtype under this unit's instruction set. Included by the isa_*.cpp files only, each
// of which defines LDREG_ISA and is compiled with the flags its name says.
#pragma once

#include "knn_cpu.h"
#include "lid_cpu.h"
#include "pairs_cpu.h"

namespace ldreg {
inline namespace LDREG_ISA {

// Call `f` with a null pointer of the feature type.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: f(static_cast<float*>(nullptr)); return;
    case DType::f64: f(static_cast<double*>(nullptr)); return;
    case DType::bf16: f(static_cast<bf16*>(nullptr)); return;
    case DType::f16: f(static_cast<f16*>(nullptr)); return;
  }
}

// What a call takes on one thread, in nanoseconds: to within a factor of about two, which is enough to tell small from
// large.
inline double work_of(const Problem& p, bool gradient) {
  const double columns = double(p.columns), pairs = double(p.x.rows) * double(p.y.rows) / (p.same ? 2 : 1);
  const double neighbours = double(p.x.rows) * p.k;
  return pairs * (1 + columns / 30) + neighbours * (20 + columns * (gradient ? 0.5 : 0.25)) + double(p.x.rows) * 1000;
}

// f(problem, null pointer of the feature type), with as many threads as the work is worth.
template <class F>
void run(Problem p, double work, Control& control, F&& f) {
  p.threads = threads_for(work, p.threads);
  auto call = [&] { with_dtype(p.dtype, [&](auto* t) { f(p, t); }); };
  with_team(p.threads, control, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
}

inline void knn_any(const Problem& p, const KnnOutput& out, Control& control) {
  run(p, work_of(p, false), control,
      [&](const Problem& own, auto* t) { knn<std::remove_pointer_t<decltype(t)>>(own, out, control); });
}

inline void lid_any(const Problem& p, const LidRequest& request, const LidOutput& out, Control& control) {
  run(p, work_of(p, out.grad != nullptr), control,
      [&](const Problem& own, auto* t) { lid<std::remove_pointer_t<decltype(t)>>(own, request, out, control); });
}

// f(problem) with as many threads as `products` of all pairs are worth.
template <class F>
void run_pairs(PairsProblem p, double products, Control& control, F&& f) {
  const double pairs = double(p.rows) * double(p.candidates);
  p.threads = threads_for(pairs * products * (1 + double(p.columns) / 30), p.threads);
  auto call = [&] { f(p); };
  with_team(p.threads, control, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
}

inline void pair_sums_any(const PairsProblem& p, float* state, float* by_x, Control& control) {
  run_pairs(p, by_x ? 2 : 1, control, [&](const PairsProblem& own) {
    PairSums sums(own, control);
    if (by_x) sums.sums_and_gradient(state, by_x);
    else sums.sums(state);
  });
}

inline void pair_gradients_any(const PairsProblem& p, const float* state, const float* by_value, float* by_x, float* by_y,
                               Control& control) {
  run_pairs(p, 2 * (bool(by_x) + bool(by_y)), control,
            [&](const PairsProblem& own) { PairSums(own, control).gradients(state, by_value, by_x, by_y); });
}

}  // namespace LDREG_ISA
}  // namespace ldreg
