// The CPU kernels compiled for: neonbf16.
#define LDREG_ISA neonbf16
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_neonbf16{"neonbf16", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
