// The kernels of block-sparse products on a stream: one function for each file that nvcc compiles.
#pragma once
#include "cuda/block/kernels.h"

namespace jaxsparse::cuda {

Status LaunchPatternStep(PatternStep step, const PatternArrays& args, const GridSize& grid,
                         Stream stream);
Status LaunchForward(const Variant& variant, const ProductArgs& args, const GridSize& grid,
                     Stream stream);
Status LaunchInputGrad(const Variant& variant, const ProductArgs& args, const GridSize& grid,
                       Stream stream);
Status LaunchWeightGrad(const Variant& variant, const WeightGradArgs& args, const GridSize& grid,
                        Stream stream);
Status LaunchAddSplits(ArithmeticKind arithmetic, const AddSplitsArgs& args, const GridSize& grid,
                       Stream stream);

}  // namespace jaxsparse::cuda
