// Launching the kernels of one dtype. Instantiated by ldreg_<dtype>.cu, so that dtypes compile side by side.
#pragma once

#include "ldreg_kernel.h"
#include "plan.h"

namespace ldreg::cuda {

enum class Way : int { portable, hopper, pairs };  // PortableTiles, HopperTiles, NoTiles

struct LaunchAt {
  int blocks, shared_bytes, most_shared_bytes;
  Way way;
  void* stream;
};

template <class T>
void launch_kernel(const Arguments& a, const LaunchAt& at);

}  // namespace ldreg::cuda

#if defined(LDREG_SIMT)
#include "launch.h"  // python_tests/simt
#else
#include "check.h"
#include "mainloop_mma.h"
#include "tile_stage_hopper.h"

namespace ldreg::cuda {

using PortableTiles = TileStage<MmaLoop>;
using HopperTiles = HopperTileStage;

template <class T, class Stage>
void start(const Arguments& a, const LaunchAt& at) {
  auto* kernel = ldreg_kernel<T, Stage>;
  // Always the most there is: a captured graph keeps its own size, and must not find the limit lowered by a later call.
  LDREG_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, at.most_shared_bytes));
  kernel<<<at.blocks, Stage::kThreads, at.shared_bytes, static_cast<cudaStream_t>(at.stream)>>>(a);
  LDREG_CUDA_CHECK(cudaGetLastError());
}

}  // namespace ldreg::cuda
#endif
