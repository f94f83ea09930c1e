// The kernels of block-sparse products behind one interface: on a GPU, or in the emulation. So what
// is launched, in which order and with what arguments, is the same code in both.
#pragma once
#include "core/status.h"
#include "cuda/block/arguments.h"
#include "cuda/block/variant.h"
#include "cuda/common/grid_size.h"

namespace jaxsparse::cuda {

// The kernels of block/pattern-inl.h.
enum class PatternStep { kCheck, kCountRows, kSumCounts, kListArrivals, kOrderArrivals, kPrepare };

class BlockKernels {
 public:
  virtual ~BlockKernels() = default;
  virtual const Device& device() const = 0;
  virtual Status Pattern(PatternStep step, const PatternArrays& args, const GridSize& grid) = 0;
  virtual Status Forward(const Variant& variant, const ProductArgs& args, const GridSize& grid) = 0;
  virtual Status InputGrad(const Variant& variant, const ProductArgs& args,
                           const GridSize& grid) = 0;
  virtual Status WeightGrad(const Variant& variant, const WeightGradArgs& args,
                            const GridSize& grid) = 0;
  virtual Status Splits(ArithmeticKind arithmetic, const AddSplitsArgs& args,
                        const GridSize& grid) = 0;
};

// Launches all that a pass takes.
Status RunBlockMatmul(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
                      Scratch scratch, BlockKernels& kernels);

}  // namespace jaxsparse::cuda
