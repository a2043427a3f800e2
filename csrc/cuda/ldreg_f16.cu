// The kernels for float16 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<__half>(const Arguments& a, const LaunchAt& at) {
  if (at.way == Way::hopper) start<__half, HopperTiles>(a, at);
  else if (at.way == Way::portable) start<__half, PortableTiles>(a, at);
  else start<__half, NoTiles>(a, at);
}

}  // namespace ldreg::cuda
