// The CPU kernels compiled for: avx512.
#define LDREG_ISA avx512
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_avx512{"avx512", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
