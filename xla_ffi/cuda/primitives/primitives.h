// The primitive layer: the only way for a kernel to reach memory, other threads and the matrix
// units.
//
// Two backends have the same names. `ptx/` is for nvcc and holds all inline assembly; its comments
// name the sections of the PTX ISA manual. `emulated/` runs the same kernel bodies on a CPU, as
// slowly and as late as the manual allows, and checks what hardware does not.
//
//   memory.h    the place of a thread; global and shared memory; barriers; shuffles; atomics
//   copy.h      asynchronous copies from global to shared memory
//   matrix.h    fragments from shared memory, and products of them
//   hopper.h    sm_90a only, and included apart: barriers that count bytes, boxes, asynchronous
//               products, registers that change hands
//
// A kernel is a type, so that both backends can run it:
//
//   struct Kernel {
//     using Args = ...;                            // plain data, passed by value
//     static constexpr int kThreads = ...;         // of a block, a multiple of 32
//     static constexpr size_t kSharedBytes = ...;  // dynamic shared memory of a block
//     static JAXSPARSE_DEVICE void Run(const Args& args);
//   };
//
// Pointers into memory may be computed freely, but are dereferenced by the layer alone. `assert` is
// forbidden: on a device it costs registers and makes ptxas serialise asynchronous products.
#pragma once
#include "cuda/primitives/numbers.h"

#ifdef __CUDACC__
#include "cuda/primitives/ptx/copy.h"
#include "cuda/primitives/ptx/matrix.h"
#include "cuda/primitives/ptx/memory.h"
#else
#include "cuda/primitives/emulated/copy.h"
#include "cuda/primitives/emulated/matrix.h"
#include "cuda/primitives/emulated/memory.h"
#endif
