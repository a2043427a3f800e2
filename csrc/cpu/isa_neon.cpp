// The CPU kernels compiled for: neon.
#define LDREG_ISA neon
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_neon{"neon", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
