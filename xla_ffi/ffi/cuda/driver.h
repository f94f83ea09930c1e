// What CUDA is there and what the kernels were built with. None of it starts CUDA, so that the
// environment may still say which GPUs there are to be.
#pragma once
#include <string>
#include <vector>

namespace jaxsparse::cuda {

// The newest CUDA version that the installed driver supports, as 1000 * major + 10 * minor; 0
// where there is no driver.
int DriverVersion();

// The version of the toolkit that the kernels were built with, in the same way.
int ToolkitVersion();

// What the kernels were compiled for, as CMake names it: "80", "90a-real".
std::vector<std::string> Architectures();

}  // namespace jaxsparse::cuda
