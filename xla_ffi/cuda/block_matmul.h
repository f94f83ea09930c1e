// Products with block-sparse weights on NVIDIA GPUs from sm_80 on: what a handler calls. Knows
// neither XLA nor Python, and needs no CUDA header.
//
// A launch only enqueues kernels on the stream: it allocates nothing and waits for nothing, so it
// may be captured into a CUDA graph. The handler has checked shapes and dtypes; rows and cols are
// data on the device that nobody has looked at. Kernels check them before they use them: a pattern
// that is not valid makes the whole result of its groups NaN, as plain JAX does, and nothing is
// read or written outside the arrays.
//
// The same inputs give the same bits: no sum depends on the device or on the order of threads.
#pragma once
#include <cstddef>

#include "core/block_matmul.h"
#include "core/status.h"

namespace jaxsparse::cuda {

// Which of x, w, y is the result: y, x or w.
enum class Pass { kForward, kInputGrad, kWeightGrad };

// Of float32: products of numbers rounded to TF32 on tensor cores, or exact ones without them.
// Other dtypes have one way only. Sums are in float32, for float64 in float64.
enum class Precision { kDefault, kHighest };

// A cudaStream_t.
using Stream = void*;

// Device memory for what a launch derives from the pattern and for partial sums. Its contents
// before the launch do not matter, and nobody needs them after.
struct Scratch {
  void* data = nullptr;  // aligned to 128 bytes
  size_t bytes = 0;
};

// How much scratch a launch takes. Follows from the sizes and groups of the problem alone, not from
// its pointers or the device, so that it is known when a program is traced; 0 is possible.
size_t ScratchBytes(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision);

// Enqueues the pass on the stream. Any block sizes, alignments and dtypes; fast are blocks whose
// sides are multiples of 16 in rows of multiples of 16 bytes. Fails where a size is over what the
// kernels count, the scratch is too small, or the device refuses a launch; says which.
Status LaunchBlockMatmul(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
                         Scratch scratch, Stream stream);

}  // namespace jaxsparse::cuda
