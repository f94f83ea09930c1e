// Problems on the CPU kernels. Apart from problems.cc, which the tests of other kernels use, too.
#include <string>
#include <vector>

#include "problems.h"

namespace jaxsparse::testing {

std::vector<const cpu::KernelTable*> Tables() {
  std::vector<const cpu::KernelTable*> tables;
  for (const std::string& isa : cpu::RunnableIsas()) tables.push_back(cpu::KernelsFor(isa));
  return tables;
}

cpu::BlockMatmulKernel Kernel(const cpu::KernelTable& table, Role role, DType dtype) {
  const int i = static_cast<int>(dtype);
  return role == Role::kForward     ? table.block_forward[i]
         : role == Role::kInputGrad ? table.block_input_grad[i]
                                    : table.block_weight_grad[i];
}

Status Problem::Run(const cpu::KernelTable& table, TaskPool& pool) {
  return Kernel(table, role_, dtype_)(args, pool);
}

}  // namespace jaxsparse::testing
