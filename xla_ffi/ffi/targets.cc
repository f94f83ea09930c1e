#include "ffi/targets.h"

#include "xla/ffi/api/c_api.h"

namespace jaxsparse {

FfiApiVersion BuiltFfiApiVersion() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

std::vector<Target> cpu::AllTargets() {
  std::vector<Target> all;
  for (const auto& targets :
       {BlockMatmulTargets(), BlockCopyTargets(), ColumnCopyTargets(), SparseConvTargets()})
    all.insert(all.end(), targets.begin(), targets.end());
  return all;
}

}  // namespace jaxsparse
