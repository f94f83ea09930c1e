#include "ffi/targets.h"
#include "xla/ffi/api/c_api.h"

namespace jaxsparse {

FfiApiVersion BuiltFfiApiVersion() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jaxsparse
