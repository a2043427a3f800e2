// What the CUDA part can say about itself and the machine it runs on, and a first check of its arithmetic.
// Plain C++: the bindings need no CUDA headers. Only lid_formulas on the device needs one; the rest runs anywhere.
#pragma once

#include <string>
#include <vector>

namespace ldreg::cuda {

// Empty when kernels of this build can run on some visible device, otherwise why they cannot.
std::string unavailable_reason();

int device_count();     // 0 without a driver
int driver_version();   // the CUDA version the driver supports, 13000 for 13.0; 0 without a driver
int runtime_version();  // the CUDA version linked in

// One row per estimator of lid_math.h, in its order: LID, then d lnLID / d d_j for every j. `distances` are ascending.
// On the host or on the current device: the same header, compiled twice, has to agree with itself.
std::vector<std::vector<double>> lid_formulas(const std::vector<double>& distances, bool on_device);

}  // namespace ldreg::cuda
