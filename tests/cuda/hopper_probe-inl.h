// How sm_90a lays boxes into shared memory, reads them for products and lays out sums: the tables
// that the emulation has, asked of both. One warpgroup fetches boxes of an array, writes down where
// elements lie, multiplies parts of them in both ways that products read, and stores a box.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/common/grid_size.h"
#include "cuda/primitives/hopper.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

template <class Element>
struct HopperProbe {
  struct Args {
    TensorMap from;  // [1, 128, 128], boxes of 128 rows
    TensorMap to;    // [1, 60, 64], boxes of 64 rows
    uint16_t* lies;  // [16][8]: the first element of every 16-byte piece of 16 rows
    float* sums;     // [2][64][thread]
  };
  static constexpr int kThreads = 128;
  static constexpr int kBoxBytes = 128 * 128;
  static constexpr size_t kSharedBytes = 2 * kBoxBytes + 8;

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const int thread = ThreadIndex();
    uint8_t* boxes = SharedArray<uint8_t>(0);
    uint64_t* barrier = SharedArray<uint64_t>(2 * kBoxBytes);
    if (thread == 0) {
      InitBarrier(barrier, 1);
      FenceBarriers();
      ArriveExpecting(barrier, 2 * kBoxBytes);
      for (int i = 0; i < 2; ++i)
        FetchBox(boxes + i * kBoxBytes, &args.from, 64 * i, 0, 0, barrier);
    }
    SyncThreads();
    WaitForPhase(barrier, 0);
    StoreGlobal(args.lies + thread, LoadShared(SharedArray<uint16_t>(16 * thread)));

    float sums[2][64];
    for (int i = 0; i < 2; ++i)
      for (int e = 0; e < 64; ++e) sums[i][e] = 0;
    // Columns 16 to 32 of rows 0 to 64, times columns 80 to 96 of all rows, and times rows 16
    // to 32.
    const uint64_t a = Descriptor(boxes + 32, 16, 1024);
    FenceProducts();
    StartProduct<false>(sums[0], a, Descriptor(boxes + kBoxBytes + 32, 16, 1024), Element());
    StartProduct<true>(sums[1], a, Descriptor(boxes + 16 * 128, kBoxBytes, 1024), Element());
    CommitProducts();
    WaitForProducts<0>();
    JAXSPARSE_UNROLL
    for (int i = 0; i < 2; ++i) {
      JAXSPARSE_UNROLL
      for (int e = 0; e < 64; ++e)
        StoreGlobal(args.sums + (i * 64 + e) * kThreads + thread, sums[i][e]);
    }
    if (thread == 0) {
      StoreBox(&args.to, 0, 0, 0, boxes);
      CommitBoxes();
      WaitForBoxesRead();
    }
  }
};

// The operand: numbers between 1 and 1.75 of two bits, so that sums are exact and a number out of
// place shows. The last four rows of the stored box are not there.
struct HopperProbeData {
  std::vector<uint16_t> from, to = std::vector<uint16_t>(60 * 64, 0xDEAD);
  std::vector<uint16_t> lies = std::vector<uint16_t>(128, 0xDEAD);
  std::vector<float> sums = std::vector<float>(2 * 64 * 128, -1);

  HopperProbeData(int one, int quarter) {
    uint32_t state = 1;
    for (int i = 0; i < 128 * 128; ++i) {
      state = state * 1664525u + 1013904223u;
      from.push_back(static_cast<uint16_t>(one + quarter * static_cast<int>(state >> 30)));
    }
  }
};

// Calls run(name, element, data) for each kind of element.
template <class Run>
void ForEachHopperElement(const Run& run) {
  run("bfloat16", BF16{}, HopperProbeData(0x3F80, 0x20));
  run("float16", F16{}, HopperProbeData(0x3C00, 0x100));
}

}  // namespace jaxsparse::cuda
