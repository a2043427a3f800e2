// Turns a failed CUDA runtime call into an exception that names the call. pybind11 raises it as RuntimeError.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace ldreg::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // otherwise the next, innocent call would report this error again
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorName(status) + ", " +
                           cudaGetErrorString(status));
}

}  // namespace ldreg::cuda

#define LDREG_CUDA_CHECK(call) ::ldreg::cuda::check((call), #call)
