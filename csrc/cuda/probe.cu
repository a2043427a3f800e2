// Probing the CUDA side: is there a driver, a device, code in this build that runs on it, and does that code compute
// the formulas of lid_math.h as the host does? See probe.h. Nothing here is fast or meant to be.

#include "probe.h"

#include <cuda_runtime.h>

#include "check.h"
#include "lid_math.h"

namespace ldreg::cuda {
namespace {

constexpr int kEstimators = 6;

// One row of lid_formulas: [1 + k].
LDREG_HD void formulas_row(int estimator, const double* d, int k, double* row) {
  const auto terms = lid_terms<double>(static_cast<Estimator>(estimator), d, k);
  row[0] = terms.lid;
  for (int j = 0; j < k; ++j) row[1 + j] = lid_weight(terms, k, j, d[j]);
}

__global__ void formulas_kernel(const double* d, int k, double* rows) {
  const int estimator = threadIdx.x;
  if (estimator < kEstimators) formulas_row(estimator, d, k, rows + estimator * (1 + k));
}

// Device memory that is freed when an exception passes by.
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) { LDREG_CUDA_CHECK(cudaMalloc(&data_, count * sizeof(double))); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  double* get() const { return data_; }

 private:
  double* data_ = nullptr;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

int driver_version() {
  int version = 0;  // left at 0 by the call when no driver is installed, which is not an error
  LDREG_CUDA_CHECK(cudaDriverGetVersion(&version));
  return version;
}

int runtime_version() {
  int version = 0;
  LDREG_CUDA_CHECK(cudaRuntimeGetVersion(&version));
  return version;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string unavailable_reason() {
  const int driver = driver_version();
  if (driver == 0) return "no NVIDIA driver is installed";

  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver supports CUDA " + version_text(driver) + ", this build needs CUDA " +
           version_text(runtime_version()) + ": update the driver, or rebuild with an older nvcc";
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) return "no CUDA device is visible";
  if (status != cudaSuccess) return std::string("cudaGetDeviceCount: ") + cudaGetErrorString(status);

  cudaFuncAttributes attributes;
  // The runtime itself knows best whether a compiled architecture, or the PTX, fits the current device.
  status = cudaFuncGetAttributes(&attributes, formulas_kernel);
  cudaGetLastError();
  if (status == cudaSuccess) return "";

  int device = 0;
  cudaDeviceProp properties;
  LDREG_CUDA_CHECK(cudaGetDevice(&device));
  LDREG_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return std::string("this build has no code for ") + properties.name + " (sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + "): " + cudaGetErrorString(status) + "; see LDREG_CUDA_ARCHS";
}

std::vector<std::vector<double>> lid_formulas(const std::vector<double>& distances, bool on_device) {
  if (distances.size() < 2)
    throw std::invalid_argument("distances must hold at least 2 values, got " + std::to_string(distances.size()));
  const int k = static_cast<int>(distances.size());
  const size_t width = 1 + distances.size();
  std::vector<double> flat(kEstimators * width);
  if (on_device) {
    DeviceArray d(distances.size()), rows(flat.size());
    LDREG_CUDA_CHECK(cudaMemcpy(d.get(), distances.data(), k * sizeof(double), cudaMemcpyHostToDevice));
    formulas_kernel<<<1, 32>>>(d.get(), k, rows.get());
    LDREG_CUDA_CHECK(cudaGetLastError());
    LDREG_CUDA_CHECK(cudaMemcpy(flat.data(), rows.get(), flat.size() * sizeof(double), cudaMemcpyDeviceToHost));
  } else {
    for (int e = 0; e < kEstimators; ++e) formulas_row(e, distances.data(), k, flat.data() + e * width);
  }
  std::vector<std::vector<double>> result;
  for (int e = 0; e < kEstimators; ++e)
    result.emplace_back(flat.begin() + e * width, flat.begin() + (e + 1) * width);
  return result;
}

}  // namespace ldreg::cuda
