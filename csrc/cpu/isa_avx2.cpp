// The CPU kernels compiled for: avx2.
#define LDREG_ISA avx2
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_avx2{"avx2", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
