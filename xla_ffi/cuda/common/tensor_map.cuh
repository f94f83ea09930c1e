// Descriptions of arrays that sm_90a copies in boxes.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <string>

#include "core/status.h"
#include "cuda/common/boxed_array.h"

namespace jaxsparse::cuda {

// Maps are made by the driver, on the host: a function found at run time, for the library is not
// linked to libcuda and loads without a driver. Bulk copies without a map would need neither, but
// they copy runs of bytes: 256 of them for a tile of a, and none stores the swizzle that the
// products read. Null where the driver has no such function.
inline decltype(&cuTensorMapEncodeTiled) FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

inline Status EncodeTensorMap(const BoxedArray& array, bool is_bfloat16, CUtensorMap* map) {
  static const auto encode = FindEncoder();
  if (encode == nullptr)
    return Status::DeviceError("the driver has no cuTensorMapEncodeTiled; it needs CUDA 12.0");
  const CUtensorMapDataType type =
      is_bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(array.columns),
                              static_cast<cuuint64_t>(array.rows),
                              static_cast<cuuint64_t>(array.layers)};
  const cuuint64_t strides[] = {2 * sizes[0], 2 * sizes[0] * sizes[1]};  // in bytes
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(array.box_rows), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result =
      encode(map, type, 3, const_cast<void*>(array.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return Status::DeviceError("the driver refuses a tensor map of " + std::to_string(array.layers) +
                             " x " + std::to_string(array.rows) + " x " +
                             std::to_string(array.columns) + " (error " + std::to_string(result) +
                             ")");
}

}  // namespace jaxsparse::cuda
