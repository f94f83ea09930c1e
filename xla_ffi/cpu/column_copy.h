// Single weights of a dense weight to and from their packed form. Plain copies, any element size.
#pragma once
#include "core/column_copy.h"
#include "core/status.h"
#include "core/task_pool.h"

namespace jaxsparse::cpu {

Status GatherColumns(const ColumnCopy& problem, TaskPool& pool);
Status ScatterColumns(const ColumnCopy& problem, TaskPool& pool);

}  // namespace jaxsparse::cpu
