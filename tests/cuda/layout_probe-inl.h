// Which number ends up in which register: the tables that the emulation has of the hardware, asked
// of both. One warp loads matrices of numbered elements, multiplies small integers, rounds, and
// writes every register of every lane.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/common/grid_size.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

// Of a product of Elements: BF16, F16, or float, read as TF32.
template <class Element>
struct LayoutProbe {
  struct Args {
    const uint16_t* elements;   // [256], four matrices of 8 x 8, one after the other
    const uint32_t* registers;  // [lane][6], operands of a product: a, then b
    const float* numbers;       // [lane], to be rounded
    uint32_t* words;            // [kWords][lane], what the lanes got
    BF16* bf16s;                // [2][lane]
    F16* f16s;                  // [2][lane]
  };
  static constexpr int kThreads = 32;
  static constexpr size_t kSharedBytes = 512;
  static constexpr int kWords = 14;

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const int lane = ThreadIndex();
    uint16_t* matrices = SharedArray<uint16_t>(0);
    CopyAsync16(matrices + 8 * lane, args.elements + 8 * lane, true);
    CommitCopies();
    WaitForCopies<0>();
    SyncThreads();

    int word = 0;
    uint32_t loaded[4];
    LoadMatrices(loaded, matrices + 8 * lane);
    for (int i = 0; i < 4; ++i) Write(args, word++, loaded[i]);
    LoadMatricesTransposed(loaded, matrices + 8 * lane);
    for (int i = 0; i < 4; ++i) Write(args, word++, loaded[i]);

    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = LoadConstant(args.registers + 6 * lane + i);
    for (int i = 0; i < 2; ++i) b[i] = LoadConstant(args.registers + 6 * lane + 4 + i);
    float sums[4] = {0, 0, 0, 0};
    MultiplyAdd(sums, a, b, Element{});
    for (int i = 0; i < 4; ++i) Write(args, word++, BitsOf(sums[i]));

    const float number = LoadConstant(args.numbers + lane);
    Write(args, word++, RoundToTF32(BitsOf(number)));
    Write(args, word++, static_cast<uint32_t>(ShuffleUp(lane, 3)));
    StoreRounded(args.bf16s + lane, number);
    StoreRounded(args.f16s + lane, number);
    if (lane % 2 == 0) {
      StorePair(args.bf16s + 32 + lane, number, 2 * number);
      StorePair(args.f16s + 32 + lane, number, 2 * number);
    }
  }

 private:
  static JAXSPARSE_DEVICE void Write(const Args& args, int word, uint32_t value) {
    StoreGlobal(args.words + 32 * word + ThreadIndex(), value);
  }

  static JAXSPARSE_DEVICE uint32_t BitsOf(float number) {
    uint32_t bits;
    __builtin_memcpy(&bits, &number, sizeof bits);
    return bits;
  }
};

// The operands, and the results in one array.
struct LayoutProbeData {
  std::vector<uint16_t> elements;
  std::vector<uint32_t> registers;
  std::vector<float> numbers;
  std::vector<uint32_t> words = std::vector<uint32_t>(32 * LayoutProbe<BF16>::kWords, 0xDEADBEEF);
  std::vector<uint16_t> bf16s = std::vector<uint16_t>(64, 0xDEAD);
  std::vector<uint16_t> f16s = std::vector<uint16_t>(64, 0xDEAD);

  // `register_of(draw)` makes one out of draws between 0 and 15: numbers of few bits, so that sums
  // of their products are exact, in any order.
  template <class RegisterOf>
  explicit LayoutProbeData(const RegisterOf& register_of) {
    for (int i = 0; i < 256; ++i) elements.push_back(static_cast<uint16_t>(i));
    uint32_t state = 1;
    const auto draw = [&] { return (state = state * 1664525u + 1013904223u) >> 28; };
    for (int i = 0; i < 32 * 6; ++i) registers.push_back(register_of(draw));
    for (int i = 0; i < 32; ++i)
      numbers.push_back((1 + static_cast<float>(i * 37 % 64) / 4096.f + 0x1p-12f) *
                        (i % 3 == 0 ? -1.f : 1.f) * (i % 5 == 0 ? 0x1p-16f : 1.f));
  }
};

// Runs `run(name, element, data)` for each kind of element, with numbers 1 + k / 16 of it.
template <class Run>
void ForEachElement(const Run& run) {
  run("bfloat16", BF16{}, LayoutProbeData([](const auto& draw) {
        const uint32_t low = 0x3F80 + 8 * draw();
        return (0x3F80 + 8 * draw()) << 16 | low;
      }));
  run("float16", F16{}, LayoutProbeData([](const auto& draw) {
        const uint32_t low = 0x3C00 + 64 * draw();
        return (0x3C00 + 64 * draw()) << 16 | low;
      }));
  // The low bits, which do not count, are set too.
  run("tf32", float{}, LayoutProbeData([](const auto& draw) {
        const uint32_t low = 0x1E00 + draw();
        return 0x3F800000 + (draw() << 19) + low;
      }));
}

}  // namespace jaxsparse::cuda
