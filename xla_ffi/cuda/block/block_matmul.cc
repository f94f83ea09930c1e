#include "cuda/block_matmul.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/block/kernels.h"

namespace jaxsparse::cuda {
namespace {

constexpr int64_t kScratchAlignment = 128;
constexpr int kFewBlocks = 4096;  // of a pattern: four for each thread that prepares it at once
constexpr int kPerBlockThreads = 256;  // of the kernels that take a thread per block, or per number

// What is derived from sizes alone. All else in this file follows from it.
struct Plan {
  Variant variant;
  PatternArrays pattern;  // without pointers
  int64_t patterns = 0;
  int64_t pattern_bytes = 0;

  // Of the weight gradient.
  int64_t strips = 0;  // no pattern has more
  int64_t tiles_in = 0, tiles_out = 0;
  int splits = 1;
  int64_t rows_per_split = 0;
  int64_t numbers = 0;  // of w, all groups
  int64_t split_bytes = 0;

  size_t scratch_bytes() const { return static_cast<size_t>(pattern_bytes + split_bytes); }
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// The batch is split so that there are about this many tiles: two for each multiprocessor of a
// large chip. A constant, for the size of the scratch and the bits of the result must not depend on
// the device.
constexpr int64_t kEnoughTiles = 264;
constexpr int64_t kFewestRows = 512;  // of a split: 16 steps or more, to fill and drain the ring
constexpr int64_t kMostSplits = 32;

void PlanWeightGrad(const BlockMatmul& problem, Plan* plan) {
  PatternArrays& pattern = plan->pattern;
  const int64_t tile_rows = TileRows(plan->variant.arithmetic);
  pattern.blocks_per_strip =
      static_cast<int32_t>(std::max<int64_t>(1, tile_rows / problem.block_in));
  // A strip that is not full for each column, and for the unused places.
  plan->strips = std::min(problem.capacity,
                          problem.capacity / pattern.blocks_per_strip + pattern.grid_cols + 1);
  plan->tiles_in = CeilDiv(pattern.blocks_per_strip * problem.block_in, tile_rows);
  plan->tiles_out = CeilDiv(problem.block_out, plan->variant.tile);
  const int64_t block_size = problem.block_in * problem.block_out;
  plan->numbers = problem.num_groups() * problem.capacity * block_size;

  // In the widest tiles there are: those of the variant depend on where the arrays lie, which the
  // size of the scratch must not.
  const int64_t tiles =
      plan->strips * plan->tiles_in * CeilDiv(problem.block_out, 128) * problem.num_groups();
  const int64_t wanted = tiles == 0 ? 1 : kEnoughTiles / tiles;
  const int64_t splits =
      std::max<int64_t>(1, std::min({wanted, problem.batch / kFewestRows, kMostSplits}));
  plan->rows_per_split = std::max<int64_t>(64, RoundUp(CeilDiv(problem.batch, splits), 64));
  plan->splits =
      static_cast<int>(std::max<int64_t>(1, CeilDiv(problem.batch, plan->rows_per_split)));
  if (plan->splits > 1) {
    plan->split_bytes = RoundUp(plan->splits * plan->numbers * SumBytes(plan->variant.arithmetic),
                                kScratchAlignment);
  }
}

Plan MakePlan(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
              const Device& device) {
  Plan plan{};
  plan.variant = Select(pass, problem, dtype, precision, device);
  PatternArrays& pattern = plan.pattern;
  pattern.capacity = static_cast<int32_t>(problem.capacity);
  pattern.grid_rows = static_cast<int32_t>(problem.grid_rows());
  pattern.grid_cols = static_cast<int32_t>(problem.grid_cols());
  pattern.blocks_per_strip = 1;
  plan.patterns = NumGroups(problem.pattern_group);

  int64_t words = 1;  // is_invalid
  const auto take = [&words](int64_t size) {
    const int64_t first = words;
    words += size;
    return first;
  };
  pattern.column_start = take(problem.grid_cols() + 2);
  if (pass == Pass::kInputGrad) {
    pattern.row_start = take(problem.grid_rows() + 1);
    pattern.by_row = take(problem.capacity);
    pattern.arrival = take(problem.capacity);
    pattern.slot = take(problem.capacity);
  }
  if (pass != Pass::kWeightGrad) {
    pattern.bucket = take(kBuckets + 1);
    pattern.heaviest = take(pass == Pass::kForward ? problem.grid_cols() : problem.grid_rows());
  }
  if (pass == Pass::kWeightGrad) {
    pattern.strip_start = take(problem.grid_cols() + 2);
    PlanWeightGrad(problem, &plan);
  }
  pattern.words_per_pattern = words;
  plan.pattern_bytes =
      RoundUp(plan.patterns * words * static_cast<int64_t>(sizeof(int32_t)), kScratchAlignment);
  return plan;
}

Status CheckSizes(const BlockMatmul& problem) {
  // Far enough from 2^31 for the kernels' sums of two of them.
  constexpr int64_t kMost = int64_t{1} << 30;
  const struct {
    const char* name;
    int64_t size;
  } sizes[] = {{"in", problem.in},
               {"out", problem.out},
               {"capacity", problem.capacity},
               {"block_in", problem.block_in},
               {"block_out", problem.block_out}};
  for (const auto& [name, size] : sizes) {
    if (size < 0 || size > kMost) {
      return Status::InvalidArgument("CUDA kernels take sizes up to 2^30, got " +
                                     std::string(name) + "=" + std::to_string(size) +
                                     ". Use implementation=\"xla\"");
    }
  }
  if (problem.block_in == 0 || problem.block_out == 0) {
    return Status::InvalidArgument("blocks must not be empty, got blocks of " +
                                   std::to_string(problem.block_in) + " x " +
                                   std::to_string(problem.block_out));
  }
  return {};
}

Status CheckGrid(int64_t tiles) {
  if (tiles <= kMaxGridX) return {};
  return Status::InvalidArgument("a launch has up to 2^31 - 1 tiles, got " + std::to_string(tiles) +
                                 ". Split the batch");
}

// Groups [first, first + count) for which every array's index steps evenly: one launch.
struct GroupRun {
  int64_t first, count;
};

GroupIndices IndicesOf(const std::vector<int64_t>& map, const GroupRun& run) {
  return {map[run.first], run.count > 1 ? map[run.first + 1] - map[run.first] : 0};
}

std::vector<GroupRun> GroupRuns(const BlockMatmul& problem) {
  const std::vector<int64_t>* maps[] = {&problem.x_group, &problem.w_group, &problem.y_group,
                                        &problem.pattern_group};
  std::vector<GroupRun> runs;
  for (int64_t g = 0; g < problem.num_groups(); ++g) {
    bool goes_on = !runs.empty() && runs.back().count < kMaxGridYZ;
    for (const std::vector<int64_t>* map : maps) {
      goes_on = goes_on && (runs.back().count == 1 ||
                            (*map)[g] - (*map)[g - 1] ==
                                (*map)[runs.back().first + 1] - (*map)[runs.back().first]);
    }
    if (goes_on) {
      ++runs.back().count;
    } else {
      runs.push_back({g, 1});
    }
  }
  return runs;
}

// Derives what the pass needs of all patterns.
Status PreparePatterns(Pass pass, const Plan& plan, PatternArrays pattern, BlockKernels& kernels) {
  for (int64_t first = 0; first < plan.patterns; first += kMaxGridYZ) {
    const int count = static_cast<int>(std::min<int64_t>(kMaxGridYZ, plan.patterns - first));
    const GridSize per_pattern{1, count, 1};
    const GridSize per_block{CeilDiv(pattern.capacity, kPerBlockThreads), count, 1};
    const auto run = [&](PatternStep step, const GridSize& grid) {
      return kernels.Pattern(step, pattern, grid);
    };
    const bool is_at_once = pass == Pass::kInputGrad && pattern.capacity <= kFewBlocks;
    const PatternStep first_step = is_at_once ? PatternStep::kPrepare : PatternStep::kCheck;
    if (Status s = run(first_step, per_pattern); !s.ok()) return s;
    if (pass == Pass::kInputGrad && !is_at_once) {
      if (Status s = run(PatternStep::kCountRows, per_block); !s.ok()) return s;
      if (Status s = run(PatternStep::kSumCounts, per_pattern); !s.ok()) return s;
      if (Status s = run(PatternStep::kListArrivals, per_block); !s.ok()) return s;
      if (Status s = run(PatternStep::kOrderArrivals, per_block); !s.ok()) return s;
    }
    pattern.rows += count * int64_t{pattern.capacity};
    pattern.cols += count * int64_t{pattern.capacity};
    pattern.words += count * pattern.words_per_pattern;
  }
  return {};
}

Status RunProduct(Pass pass, const Plan& plan, const PatternArrays& pattern,
                  const BlockMatmul& problem, BlockKernels& kernels) {
  const bool forward = pass == Pass::kForward;
  ProductArgs args{};
  args.pattern = pattern;
  args.a = forward ? problem.x : problem.y;
  args.w = problem.w;
  args.c = forward ? problem.y : problem.x;
  args.c_is_float32 = problem.y_is_float32;
  args.a_groups = NumGroups(forward ? problem.x_group : problem.y_group);
  args.w_groups = NumGroups(problem.w_group);
  args.c_groups = NumGroups(forward ? problem.y_group : problem.x_group);
  args.m = problem.batch;
  args.k = forward ? problem.in : problem.out;
  args.n = forward ? problem.out : problem.in;
  args.block_k = static_cast<int32_t>(forward ? problem.block_in : problem.block_out);
  args.block_n = static_cast<int32_t>(forward ? problem.block_out : problem.block_in);
  args.lines = forward ? pattern.grid_cols : pattern.grid_rows;
  args.tiles_per_line =
      static_cast<int32_t>(CeilDiv(std::min<int64_t>(args.block_n, args.n), plan.variant.tile));
  const int64_t rows_of_tiles = CeilDiv(args.m, TileRows(plan.variant.arithmetic));
  const int64_t tiles = rows_of_tiles * args.lines * args.tiles_per_line;
  const int64_t a_bytes = args.m * args.k * ElementBytes(plan.variant.arithmetic);
  // The rest of L2 is for W and c.
  args.band = static_cast<int32_t>(
      a_bytes <= kernels.device().l2_bytes / 4 * 3 ? std::max<int64_t>(1, rows_of_tiles) : 1);
  if (Status s = CheckGrid(tiles); !s.ok()) return s;
  for (const GroupRun& run : GroupRuns(problem)) {
    args.a_group = IndicesOf(forward ? problem.x_group : problem.y_group, run);
    args.w_group = IndicesOf(problem.w_group, run);
    args.c_group = IndicesOf(forward ? problem.y_group : problem.x_group, run);
    args.pattern_group = IndicesOf(problem.pattern_group, run);
    const GridSize grid{tiles, static_cast<int>(run.count), 1};
    Status s = forward ? kernels.Forward(plan.variant, args, grid)
                       : kernels.InputGrad(plan.variant, args, grid);
    if (!s.ok()) return s;
  }
  return {};
}

Status RunWeightGrad(const Plan& plan, const PatternArrays& pattern, const BlockMatmul& problem,
                     void* sums, BlockKernels& kernels) {
  const bool is_split = plan.splits > 1;
  WeightGradArgs args{};
  args.pattern = pattern;
  args.x = problem.x;
  args.y = problem.y;
  args.w = is_split ? sums : problem.w;
  args.w_holds_sums = is_split;
  args.m = problem.batch;
  args.in = problem.in;
  args.out = problem.out;
  args.block_in = static_cast<int32_t>(problem.block_in);
  args.block_out = static_cast<int32_t>(problem.block_out);
  args.tiles_in = static_cast<int32_t>(plan.tiles_in);
  args.tiles_out = static_cast<int32_t>(plan.tiles_out);
  args.rows_per_split = plan.rows_per_split;
  args.split_stride = plan.numbers;
  const int64_t tiles = plan.strips * plan.tiles_in * plan.tiles_out;
  if (Status s = CheckGrid(tiles); !s.ok()) return s;
  for (const GroupRun& run : GroupRuns(problem)) {
    args.x_group = IndicesOf(problem.x_group, run);
    args.y_group = IndicesOf(problem.y_group, run);
    args.w_group = IndicesOf(problem.w_group, run);
    args.pattern_group = IndicesOf(problem.pattern_group, run);
    const GridSize grid{tiles, static_cast<int>(run.count), plan.splits};
    if (Status s = kernels.WeightGrad(plan.variant, args, grid); !s.ok()) return s;
  }
  if (!is_split) return {};
  const GridSize grid{CeilDiv(plan.numbers, kPerBlockThreads), 1, 1};
  return kernels.Splits(plan.variant.arithmetic,
                        {sums, problem.w, plan.numbers, static_cast<int32_t>(plan.splits)}, grid);
}

}  // namespace

size_t ScratchBytes(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision) {
  if (!CheckSizes(problem).ok()) return 0;
  return MakePlan(pass, problem, dtype, precision, Device()).scratch_bytes();
}

Status RunBlockMatmul(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
                      Scratch scratch, BlockKernels& kernels) {
  if (Status s = CheckSizes(problem); !s.ok()) return s;
  const Plan plan = MakePlan(pass, problem, dtype, precision, kernels.device());
  if (scratch.bytes < plan.scratch_bytes()) {
    return Status::InvalidArgument("the scratch needs " + std::to_string(plan.scratch_bytes()) +
                                   " bytes, got " + std::to_string(scratch.bytes));
  }
  PatternArrays pattern = plan.pattern;
  pattern.rows = problem.rows;
  pattern.cols = problem.cols;
  pattern.words = static_cast<int32_t*>(scratch.data);
  if (Status s = PreparePatterns(pass, plan, pattern, kernels); !s.ok()) return s;
  if (pass != Pass::kWeightGrad) return RunProduct(pass, plan, pattern, problem, kernels);
  return RunWeightGrad(plan, pattern, problem,
                       static_cast<char*>(scratch.data) + plan.pattern_bytes, kernels);
}

}  // namespace jaxsparse::cuda
