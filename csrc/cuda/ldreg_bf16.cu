// The kernels for bfloat16 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<__nv_bfloat16>(const Arguments& a, const LaunchAt& at) {
  if (at.hopper) start<__nv_bfloat16, HopperTiles>(a, at);
  else start<__nv_bfloat16, PortableTiles>(a, at);
}

}  // namespace ldreg::cuda
