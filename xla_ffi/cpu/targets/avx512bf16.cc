// AVX-512 with the bfloat16 dot product.
namespace jaxsparse::cpu {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
}  // namespace
}  // namespace jaxsparse::cpu

#include "cpu/kernels/block_matmul-inl.h"

namespace jaxsparse::cpu {

extern const TileTable kAvx512Bf16Tiles;
const TileTable kAvx512Bf16Tiles = MakeTileTable("avx512bf16");

}  // namespace jaxsparse::cpu
