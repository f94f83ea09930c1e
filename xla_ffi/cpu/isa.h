// Which instruction sets this machine can run.
#pragma once

namespace jaxsparse::cpu {

// In the order in which they are preferred: the last that runs is the best.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kNeon };

// Whether the CPU has it and the operating system saves its registers.
bool CanRun(Isa isa);

}  // namespace jaxsparse::cpu
