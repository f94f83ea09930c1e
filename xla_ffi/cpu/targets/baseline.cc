// What every CPU of the architecture has; on x86-64 that is SSE2.
namespace jaxsparse::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
}  // namespace
}  // namespace jaxsparse::cpu

#include "cpu/kernels/block_matmul-inl.h"

namespace jaxsparse::cpu {

extern const TileTable kBaselineTiles;
const TileTable kBaselineTiles = MakeTileTable("baseline");

}  // namespace jaxsparse::cpu
