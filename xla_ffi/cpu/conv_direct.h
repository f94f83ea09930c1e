// Sparse convolution by its definition, a stored weight at a time.
#pragma once
#include "core/sparse_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/conv_plan.h"

namespace jaxsparse::cpu {

Status DirectConv(const SparseConv& problem, ConvRole role, DType dtype, TaskPool& pool);

}  // namespace jaxsparse::cpu
