#include "cpu/block_copy.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "cpu/block_pattern.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;

// Calls copy(first, last, group) on ranges of `items_per_group` items, `item_bytes` each.
Status ForPieces(const BlockMatmul& problem, int64_t items_per_group, int64_t item_bytes,
                 TaskPool& pool, const std::function<void(int64_t, int64_t, int64_t)>& copy) {
  const int64_t groups = problem.num_groups();
  if (items_per_group == 0 || item_bytes == 0 || groups == 0) return {};
  const int64_t grain = std::max<int64_t>(1, kPieceBytes / item_bytes);
  const int64_t pieces = (items_per_group + grain - 1) / grain;
  const double bytes = 2.0 * groups * items_per_group * item_bytes;
  return ParallelFor(PoolForWork(pool, 0, bytes), groups * pieces, [&](int64_t piece) {
    const int64_t first = piece % pieces * grain;
    copy(first, std::min(first + grain, items_per_group), piece / pieces);
  });
}

}  // namespace

Status GatherBlocks(const BlockMatmul& p, size_t item_bytes, TaskPool& pool) try {
  std::vector<BlockPattern> patterns;
  Status status = CheckPatterns(p, &patterns);
  if (!status.ok()) return status;
  const int64_t item = static_cast<int64_t>(item_bytes);
  const int64_t row_bytes = p.block_out * item, block_bytes = p.block_in * row_bytes;
  AdviseHugePages(p.w, p.num_groups() * p.capacity * block_bytes);
  return ForPieces(p, p.capacity, block_bytes, pool, [&](int64_t k, int64_t last, int64_t group) {
    const int64_t pattern = p.pattern_group[group];
    const char* dense = static_cast<const char*>(p.x) + p.x_group[group] * p.in * p.out * item;
    char* values = static_cast<char*>(p.w) + p.w_group[group] * p.capacity * block_bytes;
    for (; k < last; ++k) {
      char* block = values + k * block_bytes;
      if (k >= patterns[pattern].by_column().num_blocks()) {
        std::memset(block, 0, (last - k) * block_bytes);
        return;
      }
      const int64_t row = p.rows[pattern * p.capacity + k] * p.block_in;
      const int64_t col = p.cols[pattern * p.capacity + k] * p.block_out;
      const int64_t height = std::min(p.block_in, p.in - row);
      const int64_t bytes = std::min(p.block_out, p.out - col) * item;
      for (int64_t i = 0; i < height; ++i) {
        std::memcpy(block + i * row_bytes, dense + ((row + i) * p.out + col) * item, bytes);
        std::memset(block + i * row_bytes + bytes, 0, row_bytes - bytes);
      }
      std::memset(block + height * row_bytes, 0, (p.block_in - height) * row_bytes);
    }
  });
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for the pattern of the blocks");
}

Status ScatterBlocks(const BlockMatmul& p, size_t item_bytes, TaskPool& pool) try {
  std::vector<BlockPattern> patterns;
  Status status = CheckPatterns(p, &patterns);
  if (!status.ok()) return status;
  // By block row: each piece owns whole rows of the result, and writes them in one visit.
  std::vector<const BlockOrder*> orders(patterns.size());
  for (const int64_t pattern : p.pattern_group) orders[pattern] = &patterns[pattern].by_row();
  const int64_t item = static_cast<int64_t>(item_bytes);
  const int64_t row_bytes = p.out * item;
  const int64_t block_row_bytes = p.block_out * item;
  AdviseHugePages(p.x, p.num_groups() * p.in * row_bytes);
  return ForPieces(
      p, p.grid_rows(), p.block_in * row_bytes, pool,
      [&](int64_t line, int64_t last, int64_t group) {
        const BlockOrder& order = *orders[p.pattern_group[group]];
        char* dense = static_cast<char*>(p.x) + p.x_group[group] * p.in * row_bytes;
        const char* values = static_cast<const char*>(p.w) +
                             p.w_group[group] * p.capacity * p.block_in * block_row_bytes;
        for (; line < last; ++line) {
          const int64_t row = line * p.block_in;
          const int64_t height = std::min(p.block_in, p.in - row);
          std::memset(dense + row * row_bytes, 0, height * row_bytes);
          for (int64_t k = order.starts[line]; k < order.starts[line + 1]; ++k) {
            const int64_t col = order.inner[k] * p.block_out;
            const int64_t bytes = std::min(p.block_out, p.out - col) * item;
            const char* block = values + order.positions[k] * p.block_in * block_row_bytes;
            for (int64_t i = 0; i < height; ++i) {
              std::memcpy(dense + (row + i) * row_bytes + col * item, block + i * block_row_bytes,
                          bytes);
            }
          }
        }
      });
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for the pattern of the blocks");
}

}  // namespace jaxsparse::cpu
