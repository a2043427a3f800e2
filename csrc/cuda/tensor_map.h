// Describes a row-major float16 matrix to Hopper's tensor copies, boxed and swizzled as hopper.h's products read it.
//
// Host only. The encoder belongs to the driver; it is looked up through the runtime, so that nothing links libcuda and
// the module still imports where there is no driver.
#pragma once

#include <cuda_runtime.h>

#if defined(LDREG_SIMT)
#include "hopper_emulated.h"  // python_tests/simt
#else

#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "check.h"

namespace ldreg::cuda {

constexpr int kBoxRows = 128, kBoxColumns = 64;  // 16 KB; 64 columns are the 128 bytes that the swizzle spans

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    LDREG_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
#else
    LDREG_CUDA_CHECK(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || function == nullptr)
      throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled: it is older than 12.0");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// Rows of `columns` halves, contiguous and 16-byte aligned (columns a multiple of 8), row_count of them, at least one.
// A box that reaches beyond the matrix reads zeros there. Valid as long as `rows` is; pass it as a __grid_constant__.
inline CUtensorMap tensor_map(const void* rows, uint64_t row_count, uint64_t columns) {
  const cuuint64_t size[2] = {columns, row_count};  // innermost first
  const cuuint64_t pitch[1] = {columns * 2};        // bytes
  const cuuint32_t box[2] = {kBoxColumns, kBoxRows};
  const cuuint32_t every[2] = {1, 1};
  CUtensorMap map;
  const CUresult status = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(rows), size, pitch, box, every,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled failed: CUresult " + std::to_string(int(status)) + " for " +
                             std::to_string(row_count) + " rows of " + std::to_string(columns) + " halves");
  return map;
}

}  // namespace ldreg::cuda

#endif
