// The kernels for float32 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<float>(const Arguments& a, const LaunchAt& at) {
  if (at.way == Way::hopper) start<float, HopperTiles>(a, at);
  else if (at.way == Way::portable) start<float, PortableTiles>(a, at);
  else start<float, NoTiles>(a, at);
}

}  // namespace ldreg::cuda
