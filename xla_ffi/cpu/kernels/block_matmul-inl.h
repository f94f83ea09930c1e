// The tiles of the including file's instruction set, see tiles.h.
#pragma once
#include "cpu/kernels/entries-inl.h"
#include "cpu/kernels/entries_weight_grad-inl.h"
#include "cpu/kernels/lanes-inl.h"
#include "cpu/kernels/packing-inl.h"
#include "cpu/kernels/places-inl.h"
#include "cpu/kernels/product-inl.h"
#include "cpu/kernels/scatter-inl.h"
#include "cpu/kernels/weight_grad-inl.h"

namespace jaxsparse::cpu {
namespace {

template <class Type, class Op>
constexpr Tiles MakeTiles() {
  using Single = Singles<Type>;
  using Sum = Full<typename Type::Sum>;
  Tiles tiles = {};
  tiles.item_bytes = sizeof(typename Type::Stored);
  tiles.word_bytes = sizeof(typename Op::Word);
  tiles.lanes = Op::kLanes;
  tiles.items_per_word = Op::kItemsPerWord;
  tiles.sums_are_stored = Type::kSumsAreStored;
  tiles.product = {Op::kItemsPerWord,
                   {0, MaxRows(1), MaxRows(2)},
                   Type::kSumsAreStored,
                   PackRows<Op>,
                   RunProduct<Type, Op, PackedWords<Op>, MaxRows(1), MaxRows(2)>,
                   RunProduct<Sum, Op, PackedWords<Op>, MaxRows(1), MaxRows(2)>};
  tiles.streamed_product = {1,
                            {0, kMaxStreamedRows, kMaxStreamedRows},
                            true,
                            PackRows<Single>,
                            RunProduct<Type, Single, Type, kMaxStreamedRows, kMaxStreamedRows>,
                            RunProduct<Sum, Single, Type, kMaxStreamedRows, kMaxStreamedRows>};
  tiles.pack_columns = PackColumns<Op>;
  tiles.pack_transposed = PackTransposed<Op>;
  tiles.max_dot_batch = 2 * kMaxDotRows;
  tiles.dot = RunDot<Type, Op>;
  tiles.weight_grad = RunWeightGrad<Op>;
  tiles.store = StoreRows<Type>;
  return tiles;
}

#if defined(__AVX512BF16__)
using BF16Operand = BF16Pairs;
#else
using BF16Operand = Singles<BF16>;
#endif

constexpr TileTable MakeTileTable(const char* isa) {
  return {
      isa,
      {MakeTiles<F32, Singles<F32>>(), MakeTiles<F64, Singles<F64>>(),
       MakeTiles<BF16, BF16Operand>(), MakeTiles<F16, Singles<F16>>()},
      {MakeLaneTiles<F32>(), MakeLaneTiles<F64>(), MakeLaneTiles<BF16>(), MakeLaneTiles<F16>()},
      {MakePlaceTiles<F32, Singles<F32>>(), MakePlaceTiles<F64, Singles<F64>>(),
       MakePlaceTiles<BF16, BF16Operand>(), MakePlaceTiles<F16, Singles<F16>>()},
      {MakeEntryTiles<F32>(), MakeEntryTiles<F64>(), MakeEntryTiles<BF16>(), MakeEntryTiles<F16>()},
      {MakeEntryGradTiles<F32>(), MakeEntryGradTiles<F64>(), MakeEntryGradTiles<BF16>(),
       MakeEntryGradTiles<F16>()},
      {MakeScatterTiles<F32, Singles<F32>>(), MakeScatterTiles<F64, Singles<F64>>(),
       MakeScatterTiles<BF16, BF16Operand>(), MakeScatterTiles<F16, Singles<F16>>()}};
}

}  // namespace
}  // namespace jaxsparse::cpu
