// Stands in for CUDA's header of this name on the machine of simt.h: a tensor map is the matrix that it describes.
#pragma once

#include <cstdint>

struct CUtensorMap {
  const void* rows;
  uint64_t row_count, columns;
};
