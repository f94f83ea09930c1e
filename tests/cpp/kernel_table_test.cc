#include "cpu/kernel_table.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#include "numbers.h"

namespace jaxsparse::testing {
namespace {

TEST_CASE("the active table is the best that runs, or the one the environment names") {
  const std::vector<std::string> isas = cpu::RunnableIsas();
  REQUIRE(!isas.empty());
  const char* forced = std::getenv("JAXSPARSE_CPU_ISA");
  const std::string want = forced != nullptr && *forced != '\0' ? forced : isas.back();
  std::string why;
  const cpu::KernelTable* active = cpu::ActiveKernels(&why);
  if (std::find(isas.begin(), isas.end(), want) != isas.end()) {
    REQUIRE(active != nullptr);
    CHECK(std::string(active->isa) == want);
    CHECK(why == "");
  } else {
    CHECK(active == nullptr);
    CHECK(why.find("\"" + want + "\", which this machine cannot run") != std::string::npos);
  }
}

TEST_CASE("every table has every kernel, and its own name") {
  for (const std::string& isa : cpu::RunnableIsas()) {
    const cpu::KernelTable* table = cpu::KernelsFor(isa);
    REQUIRE(table != nullptr);
    CHECK(std::string(table->isa) == isa);
    for (const DType dtype : kDTypes) {
      CHECK((table->block_forward[static_cast<int>(dtype)] != nullptr));
      CHECK((table->block_input_grad[static_cast<int>(dtype)] != nullptr));
      CHECK((table->block_weight_grad[static_cast<int>(dtype)] != nullptr));
      CHECK((table->conv_forward[static_cast<int>(dtype)] != nullptr));
      CHECK((table->conv_input_grad[static_cast<int>(dtype)] != nullptr));
      CHECK((table->conv_weight_grad[static_cast<int>(dtype)] != nullptr));
    }
  }
  CHECK(cpu::KernelsFor("avx1024") == nullptr);
}

}  // namespace
}  // namespace jaxsparse::testing
