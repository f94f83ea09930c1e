// AVX-512 F, BW, DQ and VL.
namespace jaxsparse::cpu {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
}  // namespace
}  // namespace jaxsparse::cpu

#include "cpu/kernels/block_matmul-inl.h"

namespace jaxsparse::cpu {

extern const TileTable kAvx512Tiles;
const TileTable kAvx512Tiles = MakeTileTable("avx512");

}  // namespace jaxsparse::cpu
