// The kernels of block-sparse products in the emulation. One file each for the passes, as nvcc has,
// for they take a while to compile.
#pragma once
#include <vector>

#include "cuda/block/kernels.h"
#include "cuda/primitives/emulated/machine.h"

namespace jaxsparse::testing {

Status EmulatePattern(cuda::Machine& machine, cuda::PatternStep step,
                      const cuda::PatternArrays& args, const cuda::GridSize& grid);
Status EmulateForward(cuda::Machine& machine, const cuda::Variant& variant,
                      const cuda::ProductArgs& args, const cuda::GridSize& grid);
Status EmulateInputGrad(cuda::Machine& machine, const cuda::Variant& variant,
                        const cuda::ProductArgs& args, const cuda::GridSize& grid);
Status EmulateWeightGrad(cuda::Machine& machine, const cuda::Variant& variant,
                         const cuda::WeightGradArgs& args, const cuda::GridSize& grid);
Status EmulateSplits(cuda::Machine& machine, cuda::ArithmeticKind arithmetic,
                     const cuda::AddSplitsArgs& args, const cuda::GridSize& grid);

class EmulatedKernels final : public cuda::BlockKernels {
 public:
  explicit EmulatedKernels(cuda::Machine& machine) : machine_(machine) {}

  Status Pattern(cuda::PatternStep step, const cuda::PatternArrays& args,
                 const cuda::GridSize& grid) override {
    return EmulatePattern(machine_, step, args, grid);
  }
  Status Forward(const cuda::Variant& variant, const cuda::ProductArgs& args,
                 const cuda::GridSize& grid) override {
    ran = variant;
    return EmulateForward(machine_, variant, args, grid);
  }
  Status InputGrad(const cuda::Variant& variant, const cuda::ProductArgs& args,
                   const cuda::GridSize& grid) override {
    ran = variant;
    return EmulateInputGrad(machine_, variant, args, grid);
  }
  Status WeightGrad(const cuda::Variant& variant, const cuda::WeightGradArgs& args,
                    const cuda::GridSize& grid) override {
    ran = variant;
    return EmulateWeightGrad(machine_, variant, args, grid);
  }
  Status Splits(cuda::ArithmeticKind arithmetic, const cuda::AddSplitsArgs& args,
                const cuda::GridSize& grid) override {
    has_added_splits = true;
    return EmulateSplits(machine_, arithmetic, args, grid);
  }

  cuda::Variant ran{};
  bool has_added_splits = false;

 private:
  cuda::Machine& machine_;
};

}  // namespace jaxsparse::testing
