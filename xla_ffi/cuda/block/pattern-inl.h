// What the products need to know of a pattern, made on the device from its rows and columns alone:
// bodies of the kernels. In order:
//
//   CheckPattern     is_invalid, column_start, strip_start; row_start of zeros
// and for the input gradient:
//   CountRows        slot, and the number of blocks of each row in row_start
//   SumCounts        row_start
//   ListArrivals     arrival
//   OrderArrivals    by_row
//
// The order of arrival differs from run to run; by_row does not. Until CheckPattern has approved of
// them, indices are only compared.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

struct PatternView {
  const int32_t *rows, *cols;
  int32_t *is_invalid, *column_start, *strip_start, *row_start, *by_row, *arrival, *slot;
  int32_t num_blocks_at;  // index into column_start of the number of used places

  // Of the pattern that this block of threads works on.
  static JAXSPARSE_DEVICE PatternView Of(const PatternArrays& pattern) {
    const int64_t offset = static_cast<int64_t>(GroupIndex()) * pattern.capacity;
    int32_t* words = pattern.words + GroupIndex() * pattern.words_per_pattern;
    return {pattern.rows + offset,
            pattern.cols + offset,
            words,
            words + pattern.column_start,
            words + pattern.strip_start,
            words + pattern.row_start,
            words + pattern.by_row,
            words + pattern.arrival,
            words + pattern.slot,
            pattern.grid_cols};
  }

  // Of a pattern that CheckPattern has looked at; none where it is invalid.
  JAXSPARSE_DEVICE int num_blocks() const { return LoadConstant(column_start + num_blocks_at); }
};

// The sum of the values of all threads up to this one. `totals` is a word of shared memory for each
// warp. Every thread of the block arrives.
template <int kThreads>
JAXSPARSE_DEVICE int32_t SumUpToThread(int32_t value, int32_t* totals, int32_t* total) {
  const int lane = ThreadIndex() % 32, warp = ThreadIndex() / 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t below = ShuffleUp(value, distance);
    if (lane >= distance) value += below;
  }
  SyncThreads();  // totals of the last call have been read
  if (lane == 31) StoreShared(totals + warp, value);
  SyncThreads();
  *total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    const int32_t of_warp = LoadShared(totals + w);
    if (w < warp) value += of_warp;
    *total += of_warp;
  }
  return value;
}

// What both kernels of one block of threads per pattern have in common.
struct WholePatternKernel {
  using Args = PatternArrays;
  static constexpr int kThreads = 1024;
  static constexpr size_t kSharedBytes = kThreads / 32 * sizeof(int32_t);

  // start[i] = the sum of count(j) over j < i, for i up to and with `size`. count is asked for each
  // i < size by the thread that writes start[i], before it does.
  template <class Count>
  static JAXSPARSE_DEVICE void SumCountsBefore(int32_t* start, int size, const Count& count) {
    int32_t before = 0;
    for (int first = 0; first <= size; first += kThreads) {
      const int i = first + ThreadIndex();
      const int32_t mine = i < size ? count(i) : 0;
      int32_t total;
      const int32_t up_to_me = SumUpToThread<kThreads>(mine, SharedArray<int32_t>(0), &total);
      if (i <= size) StoreGlobal(start + i, before + up_to_me - mine);
      before += total;
    }
  }
};

struct CheckPattern : WholePatternKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    bool is_wrong = false;
    for (int k = ThreadIndex(); k < args.capacity; k += kThreads)
      is_wrong |= !IsInPlace(args, pattern, k);
    const bool is_invalid = SyncThreadsOr(is_wrong);
    if (ThreadIndex() == 0) StoreGlobal(pattern.is_invalid, is_invalid ? 1 : 0);

    // Of an invalid pattern every place is unused: nobody looks at its indices any more.
    for (int j = ThreadIndex(); j <= args.grid_cols; j += kThreads)
      StoreGlobal(pattern.column_start + j, is_invalid ? 0 : FirstBlockOf(args, pattern, j));
    if (ThreadIndex() == 0) StoreGlobal(pattern.column_start + args.grid_cols + 1, args.capacity);
    if (args.row_start != 0) {
      for (int i = ThreadIndex(); i <= args.grid_rows; i += kThreads)
        StoreGlobal(pattern.row_start + i, 0);
    }
    if (args.strip_start != 0) {
      SyncThreads();
      SumCountsBefore(pattern.strip_start, args.grid_cols + 1, [&](int j) {
        const int blocks =
            LoadGlobal(pattern.column_start + j + 1) - LoadGlobal(pattern.column_start + j);
        return (blocks + args.blocks_per_strip - 1) / args.blocks_per_strip;
      });
    }
  }

 private:
  // Whether place k is in the grid and after place k - 1, or unused like all that follow.
  static JAXSPARSE_DEVICE bool IsInPlace(const PatternArrays& args, const PatternView& pattern,
                                         int k) {
    const int row = LoadConstant(pattern.rows + k), col = LoadConstant(pattern.cols + k);
    if (col == args.grid_cols) return true;
    if (row < 0 || row >= args.grid_rows || col < 0 || col > args.grid_cols) return false;
    if (k == 0) return true;
    const int last_row = LoadConstant(pattern.rows + k - 1);
    const int last_col = LoadConstant(pattern.cols + k - 1);
    return last_col < col || (last_col == col && last_row < row);
  }

  // The first place of a column >= j.
  static JAXSPARSE_DEVICE int FirstBlockOf(const PatternArrays& args, const PatternView& pattern,
                                           int j) {
    int begin = 0, end = args.capacity;
    while (begin < end) {
      const int middle = begin + (end - begin) / 2;
      if (LoadConstant(pattern.cols + middle) < j) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }
};

struct SumCounts : WholePatternKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    int32_t* row_start = PatternView::Of(args).row_start;
    SumCountsBefore(row_start, args.grid_rows, [&](int i) { return LoadGlobal(row_start + i); });
  }
};

// The others take a thread for each stored block.
struct PerBlockKernel {
  using Args = PatternArrays;
  static constexpr int kThreads = 256;
  static constexpr size_t kSharedBytes = 0;

  static JAXSPARSE_DEVICE int64_t Mine() { return BlockIndex() * kThreads + ThreadIndex(); }
};

struct CountRows : PerBlockKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    const int64_t block = Mine();
    if (block >= pattern.num_blocks()) return;
    const int row = LoadConstant(pattern.rows + block);
    StoreGlobal(pattern.slot + block, AddAtomically(pattern.row_start + row, 1));
  }
};

struct ListArrivals : PerBlockKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    const int64_t block = Mine();
    if (block >= pattern.num_blocks()) return;
    const int row = LoadConstant(pattern.rows + block);
    const int at = LoadConstant(pattern.row_start + row) + LoadConstant(pattern.slot + block);
    StoreGlobal(pattern.arrival + at, static_cast<int32_t>(block));
  }
};

// A block's place among those of its row is the number of them that come before it: quadratic in
// the length of a row, but rows are short, and there is no better way without sorting.
struct OrderArrivals : PerBlockKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    const int64_t at = Mine();
    if (at >= pattern.num_blocks()) return;
    const int block = LoadConstant(pattern.arrival + at);
    const int row = LoadConstant(pattern.rows + block);
    const int begin = LoadConstant(pattern.row_start + row);
    const int end = LoadConstant(pattern.row_start + row + 1);
    int before = 0;
    for (int i = begin; i < end; ++i) before += LoadConstant(pattern.arrival + i) < block;
    StoreGlobal(pattern.by_row + begin + before, block);
  }
};

}  // namespace jaxsparse::cuda
