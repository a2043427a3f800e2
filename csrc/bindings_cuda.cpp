// ldreg_kernels._cuda: argument unpacking for csrc/cuda. Imports on a machine with no driver and no GPU.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/probe.h"

namespace py = pybind11;

namespace {

// LDREG_CUDA_ARCHS comes from the build: "sm_80;sm_90a;compute_90".
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream text(LDREG_CUDA_ARCHS);
  for (std::string name; std::getline(text, name, ';');) names.push_back(name);
  return names;
}

std::optional<std::string> unavailable_reason() {
  const std::string reason = ldreg::cuda::unavailable_reason();
  if (reason.empty()) return std::nullopt;
  return reason;
}

}  // namespace

using namespace py::literals;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA part of ldreg_kernels.";
  m.def("unavailable_reason", &unavailable_reason, "None if the kernels can run on the current device, else why not.");
  m.def("device_count", &ldreg::cuda::device_count, "Visible CUDA devices; 0 without a driver.");
  m.def("driver_version", &ldreg::cuda::driver_version, "CUDA version of the driver, 13000 for 13.0; 0 without one.");
  m.def("runtime_version", &ldreg::cuda::runtime_version, "CUDA version linked in, 13000 for 13.0.");
  m.def("architectures", &architectures, "Compiled in, e.g. [\"sm_80\", \"sm_90a\", \"compute_90\"]; the last is PTX.");
  m.def("lid_formulas", &ldreg::cuda::lid_formulas, "distances"_a, "on_device"_a,
        "Per estimator (mom, mom_amsaleg, mle, hill, hill_unbiased, mada): [LID, d lnLID / d d_1, ..., d lnLID / d d_k] "
        "for ascending distances, computed on the current device or, by the same source, on the host.");
}
