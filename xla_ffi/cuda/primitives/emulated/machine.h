// One streaming multiprocessor, emulated: runs the blocks of a grid one after the other, every
// thread of a block as a fiber.
//
// A fiber gives up control only where a thread meets others: at a barrier or where all lanes of a
// warp must arrive. Asynchronous work is done as late as the rules allow, at once, or one or the
// other by the toss of a coin, for a missing wait hides in one and a memory reused early in the
// other.
//
// Broken rules end the run with an EmulationError: memory touched out of bounds or misaligned,
// shared memory read that nobody wrote, or touched by two threads with no barrier between, a result
// written twice, lanes of a warp at different places, copies in flight at the end, threads that
// wait for each other forever.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/common/grid_size.h"

namespace jaxsparse::cuda {

struct EmulationError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Timing { kLazy, kEager, kMixed };

class Machine {
 public:
  Machine(Timing timing, uint32_t seed);
  ~Machine();
  Machine(const Machine&) = delete;

  // The arrays that a kernel may touch. Writing once means each byte once, by all kernels together.
  enum class Access { kRead, kWrite, kWriteOnce };
  void Allow(const void* data, size_t bytes, Access access);

  template <class Kernel>
  void Run(const typename Kernel::Args& args, const GridSize& grid) {
    RunGrid(grid, Kernel::kThreads, Kernel::kSharedBytes, [&args] { Kernel::Run(args); });
  }

  // ---- for the primitives, called by fibers ----

  // The machine whose fiber is running.
  static Machine& Now();
  [[noreturn]] static void Fail(const std::string& what) { throw EmulationError(what); }

  int thread() const { return current_; }
  int64_t block_x() const { return block_x_; }
  int block_y() const { return block_y_; }
  int block_z() const { return block_z_; }
  const GridSize& grid() const { return grid_; }

  void CheckGlobal(const void* p, size_t bytes, size_t alignment, bool is_write);

  uint8_t* shared() { return shared_; }
  // Both keep the shadow of shared memory: who wrote or read it last, since which barrier.
  void ReadShared(void* to, const void* from, size_t bytes, size_t alignment);
  void WriteShared(void* to, const void* from, size_t bytes, size_t alignment);

  // All threads of the block arrive. True where any brought true.
  bool Barrier(bool mine);

  // All 32 lanes of a warp, or 128 threads of a warpgroup, arrive at the same function, each with
  // its operands; the last runs it on the operands of all.
  using Collective = void (*)(void* const* threads);
  void Warp(Collective function, void* operands) {
    Meet(warps_[current_ / 32], 32, function, operands);
  }
  void Warpgroup(Collective function, void* operands) {
    Meet(warpgroups_[current_ / 128], 128, function, operands);
  }

  // Whether this piece of asynchronous work is to be done late.
  bool Defers();
  // Of the running thread. Groups land in order, whole, and only when they must.
  void AddCopy(std::function<void()> copy);
  void CommitCopies();
  void WaitForCopies(size_t pending);

  // Copies that nobody waits for but by a barrier: they land in any order, at any time.
  void Deliver(std::function<void()> copy);

  // Barriers in shared memory that count arrivals and bytes.
  void InitBarrier(const uint64_t* barrier, int arrivals);
  void FenceBarriers();
  void CheckBarrier(const uint64_t* barrier);  // is it initialised, and fenced for copies?
  void Arrive(const uint64_t* barrier, int64_t expected_bytes);
  void BytesLanded(const uint64_t* barrier, int64_t bytes);
  void WaitForPhase(const uint64_t* barrier, int parity);

  // Shared memory by asynchronous units: what a thread wrote is not there for them until it has
  // fenced.
  void WriteSharedAsync(size_t offset, uint16_t value);
  uint16_t ReadSharedAsync(size_t offset) const;
  void FenceShared();

  // Copies from shared memory, of the running thread, in groups as above.
  void AddBox(std::function<void()> copy);
  void CommitBoxes();
  void WaitForBoxes(size_t pending);

  // Of the running thread's warpgroup, like copies. After a wait its registers may be used, and the
  // next product needs a fence before it.
  void FenceProducts();
  void AddProduct(std::function<void()> product);
  void CommitProducts();
  void WaitForProducts(size_t pending);

  // Every thread has as many registers as 64 K of them allow, gives some of them up or waits for
  // those of others.
  void GiveRegisters(int count);
  void TakeRegisters(int count);

  // Accesses of a warp to the same bank of shared memory that hardware would take in turns.
  void CountBankConflicts(int count) { bank_conflicts_ += count; }
  int64_t bank_conflicts() const { return bank_conflicts_; }

 private:
  struct Fiber;
  struct Range {
    const uint8_t *begin, *end;
    Access access;
    std::vector<bool> is_written;
  };
  // Two bytes of shared memory.
  struct Shadow {
    uint32_t write_epoch = 0, read_epoch = 0;
    int16_t writer = 0, reader = 0;
    uint32_t fences = 0;  // of the writer, before it wrote
  };
  // Threads that wait for the others of their warp or warpgroup.
  struct Meeting {
    int arrived = 0;
    uint32_t generation = 0;
    Collective function = nullptr;
    void* operands[128];
  };
  struct PhaseBarrier {
    int expected = 0, arrived = 0, phase = 0;
    int64_t pending_bytes = 0;
    bool is_fenced = false;
  };
  // Work that is done in order, group by group.
  class WorkQueue {
   public:
    void Add(std::function<void()> work) { open_.push_back(std::move(work)); }
    void Commit();
    void Wait(size_t pending);
    void RunAll();  // groups stay, with nothing to do
    bool is_empty() const;

   private:
    using Works = std::vector<std::function<void()>>;
    Works open_;                // not yet committed
    std::deque<Works> groups_;  // committed, in order
  };

  void RunGrid(const GridSize& grid, int threads, size_t shared_bytes,
               const std::function<void()>& kernel);
  void RunBlock();
  void Yield();
  void Meet(Meeting& meeting, int size, Collective function, void* operands);
  void Land();  // one delivery, any
  PhaseBarrier& BarrierAt(const uint64_t* barrier);
  void EndPhaseIfDone(PhaseBarrier& barrier);
  int RegistersAtStart() const { return (1 << 16) / num_threads_ / 8 * 8; }
  static void FiberMain();
  size_t SharedOffset(const void* p, size_t bytes, size_t alignment) const;

  Timing timing_;
  std::mt19937 random_;
  std::vector<Range> ranges_;

  GridSize grid_;
  int64_t block_x_ = 0;
  int block_y_ = 0, block_z_ = 0;
  int num_threads_ = 0;
  const std::function<void()>* kernel_ = nullptr;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  int current_ = -1;
  bool progress_ = false;
  std::jmp_buf scheduler_;
  std::string failure_;

  std::vector<uint8_t> shared_storage_;
  uint8_t* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::vector<Shadow> shadow_;
  uint32_t epoch_ = 0, first_epoch_ = 0;  // of now, and of the block's start; counted in barriers

  int barrier_arrived_ = 0;
  uint32_t barrier_generation_ = 0;
  bool barrier_any_ = false, barrier_result_ = false;
  std::vector<Meeting> warps_, warpgroups_;
  std::vector<WorkQueue> products_;  // of each warpgroup
  std::vector<bool> is_fenced_;      // of each warpgroup: for products
  int free_registers_ = 0;
  std::vector<std::function<void()>> deliveries_;
  std::map<const uint64_t*, PhaseBarrier> barriers_;
  int64_t bank_conflicts_ = 0;
};

}  // namespace jaxsparse::cuda
