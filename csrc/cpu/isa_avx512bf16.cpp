// The CPU kernels compiled for: avx512bf16.
#define LDREG_ISA avx512bf16
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_avx512bf16{"avx512bf16", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
