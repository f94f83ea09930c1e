// Every handler, with the name it is registered under. No XLA types, so that the bindings need not
// see XLA.
#pragma once
#include <vector>

namespace jaxsparse {

// `jaxsparse.<handler>.v<version>`: exported programs hold these names, so a handler that takes
// other operands, or means something else, gets a new version.
struct Target {
  const char* name;
  void* handler;
};

struct FfiApiVersion {
  int major_version, minor_version;
};

// Of the headers that the handlers were compiled with. XLA refuses handlers newer than itself.
FfiApiVersion BuiltFfiApiVersion();

namespace cpu {

std::vector<Target> AllTargets();

// One list per file of handlers.
std::vector<Target> BlockMatmulTargets();
std::vector<Target> BlockCopyTargets();
std::vector<Target> ColumnCopyTargets();
std::vector<Target> SparseConvTargets();
std::vector<Target> PlacesConvTargets();

}  // namespace cpu

namespace cuda {

std::vector<Target> AllTargets();

}  // namespace cuda
}  // namespace jaxsparse
