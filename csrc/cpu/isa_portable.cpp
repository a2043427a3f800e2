// The CPU kernels compiled for: portable.
#define LDREG_ISA portable
#include "kernels.h"

const ldreg::Kernels ldreg::kernels_portable{"portable", ldreg::knn_any, ldreg::lid_any, ldreg::pair_sums_any,
                                            ldreg::pair_gradients_any};
