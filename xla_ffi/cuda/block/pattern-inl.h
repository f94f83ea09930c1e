// What the products need to know of a pattern, made on the device from its rows and columns alone:
// bodies of the kernels. In order:
//
//   CheckPattern     is_invalid, column_start, strip_start or the columns in heaviest; row_start of
//                    zeros
// and for the input gradient:
//   CountRows        slot, and the number of blocks of each row in row_start
//   SumCounts        row_start, and the rows in heaviest
//   ListArrivals     arrival
//   OrderArrivals    by_row
// or all of these in one:
//   PreparePattern   where they are few: a launch takes longer than a block of threads with them
//
// The orders of arrival and of lines equally long differ from run to run; by_row does not, and no
// result depends on the other. Until CheckPattern has approved of them, indices are only compared.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

// The arrays of the pattern that this block of threads works on.
struct PatternView {
  const PatternArrays& args;
  const int32_t *rows, *cols;
  int32_t* words;

  static JAXSPARSE_DEVICE PatternView Of(const PatternArrays& args) {
    const int64_t offset = static_cast<int64_t>(GroupIndex()) * args.capacity;
    return {args, args.rows + offset, args.cols + offset,
            args.words + GroupIndex() * args.words_per_pattern};
  }

  JAXSPARSE_DEVICE int32_t* is_invalid() const { return words; }
  JAXSPARSE_DEVICE int32_t* column_start() const { return words + args.column_start; }
  JAXSPARSE_DEVICE int32_t* strip_start() const { return words + args.strip_start; }
  JAXSPARSE_DEVICE int32_t* row_start() const { return words + args.row_start; }
  JAXSPARSE_DEVICE int32_t* by_row() const { return words + args.by_row; }
  JAXSPARSE_DEVICE int32_t* arrival() const { return words + args.arrival; }
  JAXSPARSE_DEVICE int32_t* slot() const { return words + args.slot; }
  JAXSPARSE_DEVICE int32_t* bucket() const { return words + args.bucket; }
  JAXSPARSE_DEVICE int32_t* heaviest() const { return words + args.heaviest; }

  // Of a pattern that CheckPattern has looked at; none where it is invalid.
  JAXSPARSE_DEVICE int num_blocks() const { return LoadGlobal(column_start() + args.grid_cols); }
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
  JAXSPARSE_UNROLL_BY(4)  // 1024 threads have 64 registers each
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

  // Lists lines from the longest on; `start` has been written before a barrier.
  static JAXSPARSE_DEVICE void OrderLines(const PatternView& pattern, const int32_t* start,
                                          int lines) {
    const auto bucket_of = [&](int line) {
      const int length = LoadGlobal(start + line + 1) - LoadGlobal(start + line);
      return pattern.bucket() + kBuckets - 1 - (length < kBuckets ? length : kBuckets - 1);
    };
    for (int i = ThreadIndex(); i < kBuckets; i += kThreads) StoreGlobal(pattern.bucket() + i, 0);
    SyncThreads();
    for (int i = ThreadIndex(); i < lines; i += kThreads) AddAtomically(bucket_of(i), 1);
    SyncThreads();
    SumCountsBefore(pattern.bucket(), kBuckets,
                    [&](int i) { return LoadGlobal(pattern.bucket() + i); });
    SyncThreads();
    for (int i = ThreadIndex(); i < lines; i += kThreads)
      StoreGlobal(pattern.heaviest() + AddAtomically(bucket_of(i), 1), i);
  }
};

struct CheckPattern : WholePatternKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    bool is_wrong = false;
    for (int k = ThreadIndex(); k < args.capacity; k += kThreads)
      is_wrong |= !IsInPlace(args, pattern, k);
    const bool is_invalid = SyncThreadsOr(is_wrong);
    if (ThreadIndex() == 0) StoreGlobal(pattern.is_invalid(), is_invalid ? 1 : 0);

    // Of an invalid pattern every place is unused: nobody looks at its indices any more.
    for (int j = ThreadIndex(); j <= args.grid_cols; j += kThreads)
      StoreGlobal(pattern.column_start() + j, is_invalid ? 0 : FirstBlockOf(args, pattern, j));
    if (ThreadIndex() == 0) StoreGlobal(pattern.column_start() + args.grid_cols + 1, args.capacity);
    if (args.row_start != 0) {
      for (int i = ThreadIndex(); i <= args.grid_rows; i += kThreads)
        StoreGlobal(pattern.row_start() + i, 0);
    }
    if (args.strip_start != 0) {
      SyncThreads();
      SumCountsBefore(pattern.strip_start(), args.grid_cols + 1, [&](int j) {
        const int blocks =
            LoadGlobal(pattern.column_start() + j + 1) - LoadGlobal(pattern.column_start() + j);
        return (blocks + args.blocks_per_strip - 1) / args.blocks_per_strip;
      });
    }
    if (args.heaviest != 0 && args.row_start == 0) {
      SyncThreads();
      OrderLines(pattern, pattern.column_start(), args.grid_cols);
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
    const PatternView pattern = PatternView::Of(args);
    SumCountsBefore(pattern.row_start(), args.grid_rows,
                    [&](int i) { return LoadGlobal(pattern.row_start() + i); });
    SyncThreads();
    OrderLines(pattern, pattern.row_start(), args.grid_rows);
  }
};

// What is done for each stored block, by a thread.

JAXSPARSE_DEVICE void CountInRow(const PatternView& pattern, int block) {
  const int row = LoadConstant(pattern.rows + block);
  StoreGlobal(pattern.slot() + block, AddAtomically(pattern.row_start() + row, 1));
}

JAXSPARSE_DEVICE void ListArrival(const PatternView& pattern, int block) {
  const int row = LoadConstant(pattern.rows + block);
  const int at = LoadGlobal(pattern.row_start() + row) + LoadGlobal(pattern.slot() + block);
  StoreGlobal(pattern.arrival() + at, block);
}

// A block's place among those of its row is the number of them that come before it: quadratic in
// the length of a row, but rows are short, and there is no better way without sorting.
JAXSPARSE_DEVICE void OrderArrival(const PatternView& pattern, int at) {
  const int block = LoadGlobal(pattern.arrival() + at);
  const int row = LoadConstant(pattern.rows + block);
  const int begin = LoadGlobal(pattern.row_start() + row);
  const int end = LoadGlobal(pattern.row_start() + row + 1);
  int before = 0;
  for (int i = begin; i < end; ++i) before += LoadGlobal(pattern.arrival() + i) < block;
  StoreGlobal(pattern.by_row() + begin + before, block);
}

// One launch for many blocks.
template <void (*kOfBlock)(const PatternView&, int)>
struct PerBlockKernel {
  using Args = PatternArrays;
  static constexpr int kThreads = 256;
  static constexpr size_t kSharedBytes = 0;

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    const int64_t mine = BlockIndex() * kThreads + ThreadIndex();
    if (mine < pattern.num_blocks()) kOfBlock(pattern, static_cast<int>(mine));
  }
};
using CountRows = PerBlockKernel<CountInRow>;
using ListArrivals = PerBlockKernel<ListArrival>;
using OrderArrivals = PerBlockKernel<OrderArrival>;

struct PreparePattern : WholePatternKernel {
  static JAXSPARSE_DEVICE void Run(const Args& args) {
    const PatternView pattern = PatternView::Of(args);
    CheckPattern::Run(args);
    SyncThreads();
    ForEachBlock(pattern, CountInRow);
    SumCounts::Run(args);
    SyncThreads();
    ForEachBlock(pattern, ListArrival);
    ForEachBlock(pattern, OrderArrival);
  }

 private:
  template <class OfBlock>
  static JAXSPARSE_DEVICE void ForEachBlock(const PatternView& pattern, const OfBlock& of_block) {
    const int num_blocks = pattern.num_blocks();
    for (int i = ThreadIndex(); i < num_blocks; i += kThreads) of_block(pattern, i);
    SyncThreads();
  }
};

}  // namespace jaxsparse::cuda
