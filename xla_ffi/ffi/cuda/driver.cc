#include "ffi/cuda/driver.h"

#include <cuda_runtime_api.h>

#include <sstream>

namespace jaxsparse::cuda {

int DriverVersion() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int ToolkitVersion() { return CUDART_VERSION; }

std::vector<std::string> Architectures() {
  std::istringstream all(JAXSPARSE_CUDA_ARCHITECTURES);
  std::vector<std::string> architectures;
  for (std::string one; std::getline(all, one, ',');) architectures.push_back(one);
  return architectures;
}

}  // namespace jaxsparse::cuda
