// The kernel for float64 features, which are never packed: every pair is computed. See ldreg_launch.h.
#include "ldreg_launch.h"

namespace ldreg::cuda {

template <>
void launch_kernel<double>(const Arguments& a, const LaunchAt& at) {
  start<double, NoTiles>(a, at);
}

}  // namespace ldreg::cuda
