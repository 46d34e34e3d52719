// Which instruction sets this machine can run.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace hr {

// Names, best first; "portable" is always there.
const std::vector<std::string>& available_isas();

// The table of a named instruction set, or of the best when `isa` is null or empty; null when it is not available.
const Kernels* find_kernels(const char* isa, bool bf16);

}  // namespace hr
