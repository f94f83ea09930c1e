// Every CPU kernel, one table per instruction set; the best table the machine can run is chosen
// once. `JAXSPARSE_CPU_ISA` (baseline, avx2, avx512, avx512bf16, neon) forces a lesser one.
#pragma once
#include <string>
#include <vector>

#include "core/block_matmul.h"
#include "core/places_conv.h"
#include "core/sparse_conv.h"
#include "core/status.h"
#include "core/task_pool.h"

namespace jaxsparse::cpu {

// Checks every index before it touches memory.
using BlockMatmulKernel = Status (*)(const BlockMatmul& problem, TaskPool& pool);
using SparseConvKernel = Status (*)(const SparseConv& problem, TaskPool& pool);
using PlacesConvKernel = Status (*)(const PlacesConv& problem, TaskPool& pool);
// counts [places]: how many of the channels of source [places, channels] are not zero.
using CountKernel = Status (*)(const void* source, int64_t places, int64_t channels,
                               int32_t* counts, TaskPool& pool);

struct KernelTable {
  const char* isa;
  // By DType. Sums are in float32, in float64 for kF64.
  BlockMatmulKernel block_forward[kNumDTypes];
  BlockMatmulKernel block_input_grad[kNumDTypes];
  BlockMatmulKernel block_weight_grad[kNumDTypes];
  SparseConvKernel conv_forward[kNumDTypes];
  SparseConvKernel conv_input_grad[kNumDTypes];
  SparseConvKernel conv_weight_grad[kNumDTypes];
  PlacesConvKernel places_forward[kNumDTypes];
  PlacesConvKernel places_input_grad[kNumDTypes];
  PlacesConvKernel places_weight_grad[kNumDTypes];
  CountKernel nonzeros[kNumDTypes];
};

// The table in use: the best this machine can run, or the one JAXSPARSE_CPU_ISA names. Where that
// names one the machine cannot run, `why` says so and the result is null.
const KernelTable* ActiveKernels(std::string* why);

// Names of the tables this machine can run, best last.
std::vector<std::string> RunnableIsas();
const KernelTable* KernelsFor(const std::string& isa);  // null where it cannot run

}  // namespace jaxsparse::cpu
