// AArch64, where NEON is always there.
namespace jaxsparse::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
}  // namespace
}  // namespace jaxsparse::cpu

#include "cpu/kernels/block_matmul-inl.h"

namespace jaxsparse::cpu {

extern const TileTable kNeonTiles;
const TileTable kNeonTiles = MakeTileTable("neon");

}  // namespace jaxsparse::cpu
