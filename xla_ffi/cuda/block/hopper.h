// Products on sm_90a: what their launch adds to the arguments of every product.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/block/kernels.h"
#include "cuda/common/boxed_array.h"

namespace jaxsparse::cuda {

inline BoxedArray BoxesOfA(const ProductArgs& args) {
  return {args.a, args.a_groups, args.m, args.k, 256};
}

// Blocks are stored [k][n], for a product with W transposed [n][k].
inline BoxedArray BoxesOfW(Pass pass, const ProductArgs& args) {
  const int64_t blocks = args.w_groups * args.pattern.capacity;
  if (pass == Pass::kInputGrad) return {args.w, blocks, args.block_n, args.block_k, 64};
  return {args.w, blocks, args.block_k, args.block_n, 64};
}

inline BoxedArray BoxesOfC(const ProductArgs& args) {
  return {args.c, args.c_groups, args.m, args.n, 64};
}

// Calls encode(BoxedArray, TensorMap*) for each array that is copied in boxes, and counts tiles.
// `grid` counts tiles in x and groups in y, as for other products.
template <class HopperProductArgs, class Encode>
Status FillHopperArgs(Pass pass, const ProductArgs& args, const GridSize& grid,
                      const Encode& encode, HopperProductArgs* all) {
  all->product = args;
  all->tiles_per_group = static_cast<int>(grid.x);
  all->tiles = static_cast<int>(grid.x * grid.y);
  if (Status s = encode(BoxesOfA(args), &all->a_map); !s.ok()) return s;
  if (Status s = encode(BoxesOfW(pass, args), &all->w_map); !s.ok()) return s;
  return args.c_is_float32 ? Status() : encode(BoxesOfC(args), &all->c_map);
}

// The launch has a block of threads for each multiprocessor.
Status LaunchHopperProduct(Pass pass, const Variant& variant, const ProductArgs& args,
                           const GridSize& grid, const Device& device, Stream stream);

}  // namespace jaxsparse::cuda
