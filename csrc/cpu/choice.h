// Which of the compiled instruction sets this machine executes.
#pragma once

#include <string>

#include "problem.h"

namespace ldreg {

// The fastest set, or the one named; nullptr if that is not in this build or this machine does not execute it.
const Kernels* choose_kernels(const std::string& name);

// All that may be named: "avx2, portable".
std::string executable_sets();

}  // namespace ldreg
