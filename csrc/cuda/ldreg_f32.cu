// The kernels for float32 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<float>(const Arguments& a, const LaunchAt& at) {
  if (at.hopper) start<float, HopperTiles>(a, at);
  else start<float, PortableTiles>(a, at);
}

}  // namespace ldreg::cuda
