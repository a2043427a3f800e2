// Instantiates the kernels for every dtype under this unit's instruction set. Included by the isa_*.cpp files only, each
// of which defines LDREG_ISA and is compiled with the flags its name says.
#pragma once

#include "knn_cpu.h"
#include "lid_cpu.h"

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

inline void knn_any(const Problem& p, const KnnOutput& out, Control& control) {
  with_dtype(p.dtype, [&](auto* t) { knn<std::remove_pointer_t<decltype(t)>>(p, out, control); });
}

inline void lid_any(const Problem& p, const LidRequest& request, const LidOutput& out, Control& control) {
  with_dtype(p.dtype, [&](auto* t) { lid<std::remove_pointer_t<decltype(t)>>(p, request, out, control); });
}

}  // namespace LDREG_ISA
}  // namespace ldreg
