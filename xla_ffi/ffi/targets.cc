#include "ffi/targets.h"

namespace jaxsparse {

std::vector<Target> cpu::AllTargets() {
  std::vector<Target> all;
  for (const auto& targets : {BlockMatmulTargets(), BlockCopyTargets(), ColumnCopyTargets(),
                              SparseConvTargets(), PlacesConvTargets()})
    all.insert(all.end(), targets.begin(), targets.end());
  return all;
}

}  // namespace jaxsparse
