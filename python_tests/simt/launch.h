// What stands in for `kernel<<<...>>>`: the launch on the machine of simt.h, in the order that LDREG_SIMT_SEED asks for; or
// none at all with LDREG_SIMT_LAUNCH=0, which leaves what a call costs besides (benchmarks/host.py).
#pragma once

#include <cstdlib>
#include <mutex>

#include "cuda/ldreg_kernel.h"
#include "cuda/mainloop_mma.h"
#include "cuda/tile_stage_hopper.h"

namespace ldreg::cuda {

using PortableTiles = TileStage<MmaLoop>;
using HopperTiles = HopperTileStage;

template <class T, class Stage>
void start(const Arguments& a, const LaunchAt& at) {
  const char* wanted = std::getenv("LDREG_SIMT_LAUNCH");
  if (wanted && wanted[0] == '0') return;
  static std::mutex stream;  // there is one: what is launched from two threads runs one after the other
  const std::lock_guard<std::mutex> turn(stream);
  const char* seed = std::getenv("LDREG_SIMT_SEED");
  simt::Launch launch;
  launch.grid = unsigned(at.blocks), launch.block = Stage::kThreads, launch.shared_bytes = size_t(at.shared_bytes);
  launch.seed = seed ? std::strtoull(seed, nullptr, 10) : 0;
  simt::launch(launch, [&a] { ldreg_block<T, Stage>(a); });
}

}  // namespace ldreg::cuda
