// How much scratch memory the handlers of block-sparse products take. No XLA types: for bindings.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace jaxsparse::cuda {

using Shape = std::vector<int64_t>;

// The size of the second result of a handler, for arrays as ffi/decode.h has them.
//
//   role     "forward", "input_grad" or "weight_grad"
//   dtype    of x, w and y, by NumPy's name; `dtype_of_y` may be float32 instead
//   exact    whether products of float32 are to be exact, as the attribute of the handlers
Status ScratchBytesOf(const std::string& role, const Shape& x, const Shape& w, const Shape& y,
                      const Shape& indices, const std::string& dtype, const std::string& dtype_of_y,
                      bool exact, size_t* bytes);

}  // namespace jaxsparse::cuda
