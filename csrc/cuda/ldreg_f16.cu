// The kernels for float16 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<__half>(const Arguments& a, const LaunchAt& at) {
  if (at.hopper) start<__half, HopperTiles>(a, at);
  else start<__half, PortableTiles>(a, at);
}

}  // namespace ldreg::cuda
