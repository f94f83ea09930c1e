#include "cpu/kernel_table.h"

#include <cstdlib>

#include "cpu/block_matmul.h"
#include "cpu/isa.h"
#include "cpu/places_conv.h"
#include "cpu/sparse_conv.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

#define JAXSPARSE_TARGET(id, name, narrower) extern const TileTable k##id##Tiles;
#include "cpu/targets/target_list.inc"
#undef JAXSPARSE_TARGET

namespace {

template <const TileTable& table, const TileTable& narrower, DType dtype>
struct Kernels {
  static constexpr TilesByWidth kTiles = {table.tiles[static_cast<int>(dtype)],
                                          narrower.tiles[static_cast<int>(dtype)]};
  static Status Forward(const BlockMatmul& p, TaskPool& pool) {
    return BlockForward(p, kTiles, pool);
  }
  static Status InputGrad(const BlockMatmul& p, TaskPool& pool) {
    return BlockInputGrad(p, kTiles, pool);
  }
  static Status WeightGrad(const BlockMatmul& p, TaskPool& pool) {
    return BlockWeightGrad(p, kTiles, pool);
  }

  static constexpr const LaneTiles& kLanes = table.lanes[static_cast<int>(dtype)];
  static Status SparseConvForward(const SparseConv& p, TaskPool& pool) {
    return ConvForward(p, kLanes, pool);
  }
  static Status SparseConvInputGrad(const SparseConv& p, TaskPool& pool) {
    return ConvInputGrad(p, kLanes, pool);
  }
  static Status SparseConvWeightGrad(const SparseConv& p, TaskPool& pool) {
    return ConvWeightGrad(p, kLanes, pool);
  }

  static constexpr PlaceKernels kPlaces = {
      table.tiles[static_cast<int>(dtype)], table.places[static_cast<int>(dtype)],
      table.entries[static_cast<int>(dtype)], table.entry_grads[static_cast<int>(dtype)],
      table.scatter[static_cast<int>(dtype)]};
  static Status PlacesConvForward(const PlacesConv& p, TaskPool& pool) {
    return PlacesForward(p, kPlaces, pool);
  }
  static Status PlacesConvInputGrad(const PlacesConv& p, TaskPool& pool) {
    return PlacesInputGrad(p, kPlaces, pool);
  }
  static Status PlacesConvWeightGrad(const PlacesConv& p, TaskPool& pool) {
    return PlacesWeightGrad(p, kPlaces, pool);
  }
  static Status Nonzeros(const void* source, int64_t places, int64_t channels, int32_t* counts,
                         TaskPool& pool) {
    return CountNonzeros(source, places, channels, counts, kPlaces, pool);
  }
};

template <const TileTable& table, const TileTable& narrower, DType... dtypes>
constexpr KernelTable Table(const char* isa) {
  static_assert(sizeof...(dtypes) == kNumDTypes, "every dtype has its kernels");
  return {isa,
          {Kernels<table, narrower, dtypes>::Forward...},
          {Kernels<table, narrower, dtypes>::InputGrad...},
          {Kernels<table, narrower, dtypes>::WeightGrad...},
          {Kernels<table, narrower, dtypes>::SparseConvForward...},
          {Kernels<table, narrower, dtypes>::SparseConvInputGrad...},
          {Kernels<table, narrower, dtypes>::SparseConvWeightGrad...},
          {Kernels<table, narrower, dtypes>::PlacesConvForward...},
          {Kernels<table, narrower, dtypes>::PlacesConvInputGrad...},
          {Kernels<table, narrower, dtypes>::PlacesConvWeightGrad...},
          {Kernels<table, narrower, dtypes>::Nonzeros...}};
}

struct Target {
  Isa isa;
  KernelTable kernels;
};

constexpr Target kTargets[] = {
#define JAXSPARSE_TARGET(id, name, narrower) \
  {Isa::k##id,                               \
   Table<k##id##Tiles, narrower, DType::kF32, DType::kF64, DType::kBF16, DType::kF16>(name)},
#include "cpu/targets/target_list.inc"
#undef JAXSPARSE_TARGET
};

std::string Join(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

}  // namespace

std::vector<std::string> RunnableIsas() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) {
    if (CanRun(target.isa)) names.push_back(target.kernels.isa);
  }
  return names;
}

const KernelTable* KernelsFor(const std::string& isa) {
  for (const Target& target : kTargets) {
    if (isa == target.kernels.isa && CanRun(target.isa)) return &target.kernels;
  }
  return nullptr;
}

const KernelTable* ActiveKernels(std::string* why) {
  struct Choice {
    const KernelTable* table;
    std::string why;
  };
  static const Choice choice = [] {
    const std::vector<std::string> runnable = RunnableIsas();
    const char* forced = std::getenv("JAXSPARSE_CPU_ISA");
    const std::string isa = forced != nullptr && *forced != '\0' ? forced : runnable.back();
    Choice result = {KernelsFor(isa), ""};
    if (result.table == nullptr) {
      result.why = "JAXSPARSE_CPU_ISA names \"" + isa +
                   "\", which this machine cannot run; it can run " + Join(runnable);
    }
    return result;
  }();
  if (choice.table == nullptr && why != nullptr) *why = choice.why;
  return choice.table;
}

}  // namespace jaxsparse::cpu
