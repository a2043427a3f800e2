// The kernels for bfloat16 features; see ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<__nv_bfloat16>(const Arguments& a, const LaunchAt& at) {
  if (at.way == Way::hopper) start<__nv_bfloat16, HopperTiles>(a, at);
  else if (at.way == Way::portable) start<__nv_bfloat16, PortableTiles>(a, at);
  else start<__nv_bfloat16, NoTiles>(a, at);
}

}  // namespace ldreg::cuda
