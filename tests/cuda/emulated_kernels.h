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
Status EmulateHopperProduct(cuda::Machine& machine, cuda::Pass pass, const cuda::Variant& variant,
                            const cuda::ProductArgs& args, const cuda::GridSize& grid,
                            const cuda::Device& device);
Status EmulateWeightGrad(cuda::Machine& machine, const cuda::Variant& variant,
                         const cuda::WeightGradArgs& args, const cuda::GridSize& grid);
Status EmulateSplits(cuda::Machine& machine, cuda::ArithmeticKind arithmetic,
                     const cuda::AddSplitsArgs& args, const cuda::GridSize& grid);

class EmulatedKernels final : public cuda::BlockKernels {
 public:
  EmulatedKernels(cuda::Machine& machine, const cuda::Device& device)
      : machine_(machine), device_(device) {}

  const cuda::Device& device() const override { return device_; }

  Status Pattern(cuda::PatternStep step, const cuda::PatternArrays& args,
                 const cuda::GridSize& grid) override {
    return EmulatePattern(machine_, step, args, grid);
  }
  Status Forward(const cuda::Variant& variant, const cuda::ProductArgs& args,
                 const cuda::GridSize& grid) override {
    ran = variant;
    if (IsHopper(variant))
      return EmulateHopperProduct(machine_, cuda::Pass::kForward, variant, args, grid, device_);
    return EmulateForward(machine_, variant, args, grid);
  }
  Status InputGrad(const cuda::Variant& variant, const cuda::ProductArgs& args,
                   const cuda::GridSize& grid) override {
    ran = variant;
    if (IsHopper(variant))
      return EmulateHopperProduct(machine_, cuda::Pass::kInputGrad, variant, args, grid, device_);
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
  const cuda::Device device_;
};

}  // namespace jaxsparse::testing
