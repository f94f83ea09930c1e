// AVX2 with FMA and F16C.
namespace jaxsparse::cpu {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
}  // namespace
}  // namespace jaxsparse::cpu

#include "cpu/kernels/block_matmul-inl.h"

namespace jaxsparse::cpu {

extern const TileTable kAvx2Tiles;
const TileTable kAvx2Tiles = MakeTileTable("avx2");

}  // namespace jaxsparse::cpu
