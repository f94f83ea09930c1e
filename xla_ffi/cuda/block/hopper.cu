#include <cuda.h>

#include <algorithm>
#include <string>

#include "cuda/block/hopper.h"
#include "cuda/block/hopper_dispatch-inl.h"
#include "cuda/common/launch.cuh"

namespace jaxsparse::cuda {
namespace {

// Maps are made by the driver, on the host: a function found at run time, for the library is not
// linked to libcuda and loads without a driver. Bulk copies without a map would need neither, but
// they copy runs of bytes: 256 of them for a tile of a, and none stores the swizzle that the
// products read. Null where the driver has no such function.
decltype(&cuTensorMapEncodeTiled) FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

Status Encode(const BoxedArray& array, ArithmeticKind arithmetic, TensorMap* map) {
  static const auto encode = FindEncoder();
  if (encode == nullptr)
    return Status::DeviceError("the driver has no cuTensorMapEncodeTiled; it needs CUDA 12.0");
  const CUtensorMapDataType type = arithmetic == ArithmeticKind::kHopperBF16
                                       ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
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

}  // namespace

Status LaunchHopperProduct(Pass pass, const Variant& variant, const ProductArgs& args,
                           const GridSize& grid, const Device& device, Stream stream) {
  if (grid.x == 0 || grid.y == 0) return {};
  const auto encode = [&](const BoxedArray& array, TensorMap* map) {
    return Encode(array, variant.arithmetic, map);
  };
  HopperProductArgs all{};
  if (Status s = FillHopperArgs(pass, args, grid, encode, &all); !s.ok()) return s;
  const GridSize blocks{std::min(all.tiles, device.multiprocessors), 1, 1};
  const auto launch = [&](auto type) {
    return Launch<typename decltype(type)::Kernel>(all, blocks, stream);
  };
  return pass == Pass::kForward ? DispatchHopperProduct<Weight::kAsStored>(variant, launch)
                                : DispatchHopperProduct<Weight::kTransposed>(variant, launch);
}

}  // namespace jaxsparse::cuda
