// The CUDA kernels as host functions over raw pointers: what bindings_cuda.cpp calls. Plain C++, no CUDA headers.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ldreg::cuda {

enum class DType : int { f32, f64, bf16, f16 };

// One call, as it comes from Python: see arguments.h for the meaning of each.
struct Call {
  int device = 0;
  uintptr_t x = 0, y = 0, own_map = 0;
  int64_t B = 0, N = 0, D = 0, x_stride = 0, y_stride = 0, own_offset = -1;
  DType dtype = DType::f32;
  bool same = false, exact = true, drop_smallest = false;
  int wanted = 0;
  bool tiles = true;         // candidates from tensor-core tiles, where the dtype has them
  std::string loop = "auto"; // "mma", "wgmma" or what the device is best at
  int64_t budget = 0;        // bytes of workspace besides lists; 0: the usual
  // what is asked for
  bool knn = false, gradient = false, loss = false;
  int estimator = 0, k = 0, form = 0, reduction = 0;
  double goal = 0;
  std::vector<std::pair<int, int>> track;
  uintptr_t distances = 0, indices = 0, lid = 0, degenerate = 0, tracked = 0, grad = 0, value = 0, coeff = 0;
};

struct Needs {
  int64_t workspace;  // bytes, uninitialised
  int64_t state;      // 32-bit words, 0 before a launch and 0 again after it
  std::string plan;   // in words, for tests and the curious
};

Needs needs(const Call& call);

// One kernel, on `stream` of the call's device. Neither allocates nor waits. Throws std::runtime_error naming the shape.
void launch(const Call& call, uintptr_t workspace, uintptr_t state, uintptr_t stream);

}  // namespace ldreg::cuda
