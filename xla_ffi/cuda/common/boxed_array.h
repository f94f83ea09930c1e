#pragma once
#include <cstdint>

namespace jaxsparse::cuda {

// An array [layers, rows, columns] of short floats that sm_90a copies in boxes of 64 columns.
struct BoxedArray {
  const void* data;
  int64_t layers, rows, columns;
  int box_rows;
};

}  // namespace jaxsparse::cuda
