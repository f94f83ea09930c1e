// longjmp between stacks is what this file is for; the fortified one takes it for a mistake.
#undef _FORTIFY_SOURCE

#include "cuda/primitives/emulated/machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>
#include <utility>

namespace jaxsparse::cuda {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedAlignment = 1024;
constexpr int16_t kSeveral = -1;       // more than one reader
constexpr int16_t kAsynchronous = -2;  // not a thread but a bulk copy wrote it

Machine* running = nullptr;

}  // namespace

// ---- fibers
// --------------------------------------------------------------------------------------

// The first switch to a fiber is by its context, the others by its jump buffer: they cost no system
// call, so a barrier of a block takes microseconds.
struct Machine::Fiber {
  ucontext_t context;
  std::jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_started = false, is_done = false;

  WorkQueue copies, boxes;
  uint32_t fences = 0;
};

void Machine::WorkQueue::Commit() { groups_.push_back(std::exchange(open_, {})); }

void Machine::WorkQueue::Wait(size_t pending) {
  for (; groups_.size() > pending; groups_.pop_front()) {
    for (const std::function<void()>& work : groups_.front()) work();
  }
}

void Machine::WorkQueue::RunAll() {
  groups_.push_back(std::exchange(open_, {}));
  for (Works& works : groups_) {
    for (const std::function<void()>& work : std::exchange(works, {})) work();
  }
  groups_.pop_back();
}

bool Machine::WorkQueue::is_empty() const {
  return open_.empty() && std::all_of(groups_.begin(), groups_.end(),
                                      [](const Works& works) { return works.empty(); });
}

Machine::Machine(Timing timing, uint32_t seed) : timing_(timing), random_(seed) {}
Machine::~Machine() = default;

Machine& Machine::Now() { return *running; }

void Machine::FiberMain() {
  Machine& machine = Now();
  try {
    (*machine.kernel_)();
    const Fiber& mine = *machine.fibers_[machine.current_];
    if (!mine.copies.is_empty() || !mine.boxes.is_empty())
      Fail("a thread ended with copies in flight");
  } catch (const std::exception& error) {
    machine.failure_ = error.what();
  }
  machine.fibers_[machine.current_]->is_done = true;
  machine.progress_ = true;
  std::longjmp(machine.scheduler_, 1);
}

void Machine::Yield() {
  if (setjmp(fibers_[current_]->resume) == 0) std::longjmp(scheduler_, 1);
}

void Machine::RunGrid(const GridSize& grid, int threads, size_t shared_bytes,
                      const std::function<void()>& kernel) {
  grid_ = grid;
  num_threads_ = threads;
  shared_bytes_ = shared_bytes;
  kernel_ = &kernel;
  shadow_.resize(std::max(shadow_.size(), shared_bytes / 2 + 1));
  while (static_cast<int>(fibers_.size()) < threads) fibers_.push_back(std::make_unique<Fiber>());
  running = this;

  // In any order: no block may count on another.
  std::vector<int64_t> blocks(grid.x * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int64_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), random_);
  for (const int64_t block : blocks) {
    block_x_ = block % grid.x;
    block_y_ = static_cast<int>(block / grid.x % grid.y);
    block_z_ = static_cast<int>(block / grid.x / grid.y);
    RunBlock();
    if (!failure_.empty()) {
      const std::string where = "block " + std::to_string(block_x_) + ", " +
                                std::to_string(block_y_) + ", " + std::to_string(block_z_) +
                                ", thread " + std::to_string(current_) + ": ";
      throw EmulationError(where + std::exchange(failure_, ""));
    }
  }
}

void Machine::RunBlock() {
  // All bits set: NaN in every floating-point type, an absurd index in every integer type.
  shared_storage_.assign(shared_bytes_ + kSharedAlignment, 0xFF);
  const uintptr_t storage = reinterpret_cast<uintptr_t>(shared_storage_.data());
  shared_ = shared_storage_.data() + (kSharedAlignment - storage % kSharedAlignment);
  first_epoch_ = ++epoch_;
  barrier_arrived_ = 0;
  barrier_any_ = false;
  warps_.assign((num_threads_ + 31) / 32, Meeting());
  warpgroups_.assign((num_threads_ + 127) / 128, Meeting());
  products_.assign(warpgroups_.size(), WorkQueue());
  is_fenced_.assign(warpgroups_.size(), false);
  free_registers_ = 0;
  deliveries_.clear();
  barriers_.clear();
  for (int i = 0; i < num_threads_; ++i) {
    Fiber& fiber = *fibers_[i];
    fiber.is_started = fiber.is_done = false;
    fiber.copies = fiber.boxes = WorkQueue();
    fiber.fences = 0;
  }

  // volatile: read again after a longjmp to here.
  volatile int num_done = 0;
  while (num_done < num_threads_) {
    // A round: every fiber runs until it must wait.
    progress_ = false;
    num_done = 0;
    // In an order that neighbours cannot count on: from a random thread in random strides.
    const volatile int start = static_cast<int>(random_() % num_threads_);
    volatile int stride = static_cast<int>(random_() % num_threads_);
    while (std::gcd(static_cast<int>(stride), num_threads_) != 1) stride = stride + 1;
    for (volatile int k = 0; k < num_threads_; k = k + 1) {
      current_ = (start + k * stride) % num_threads_;
      Fiber& fiber = *fibers_[current_];
      if (fiber.is_done) {
        num_done = num_done + 1;
        continue;
      }
      if (setjmp(scheduler_) == 0) {
        if (fiber.is_started) std::longjmp(fiber.resume, 1);
        fiber.is_started = true;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, FiberMain, 0);
        setcontext(&fiber.context);
      }
      if (!failure_.empty()) return;
    }
    // A delivery lands when nothing else moves, or now and then.
    if (!deliveries_.empty() && (!progress_ || random_() % 3 == 0)) Land();
    if (!failure_.empty()) return;
    if (!progress_ && num_done < num_threads_) {
      failure_ = "deadlock: " + std::to_string(num_threads_ - num_done) +
                 " threads wait, some at a barrier that others never reach";
      return;
    }
  }
  if (!deliveries_.empty()) failure_ = "a block ended with copies in flight";
  for (const WorkQueue& products : products_) {
    if (!products.is_empty()) failure_ = "a block ended with products in flight";
  }
}

bool Machine::Barrier(bool mine) {
  barrier_any_ |= mine;
  const uint32_t generation = barrier_generation_;
  progress_ = true;
  if (++barrier_arrived_ == num_threads_) {
    barrier_arrived_ = 0;
    barrier_result_ = std::exchange(barrier_any_, false);
    ++barrier_generation_;
    ++epoch_;
  } else {
    while (barrier_generation_ == generation) Yield();
  }
  return barrier_result_;
}

void Machine::Meet(Meeting& meeting, int size, Collective function, void* operands) {
  if (meeting.arrived == 0) meeting.function = function;
  if (meeting.function != function) Fail("lanes of a warp are at different functions");
  meeting.operands[current_ % size] = operands;
  const uint32_t generation = meeting.generation;
  progress_ = true;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    function(meeting.operands);
    ++meeting.generation;
  } else {
    while (meeting.generation == generation) Yield();
  }
}

// ---- memory
// --------------------------------------------------------------------------------------

void Machine::Allow(const void* data, size_t bytes, Access access) {
  const uint8_t* begin = static_cast<const uint8_t*>(data);
  ranges_.push_back({begin, begin + bytes, access, {}});
  if (access == Access::kWriteOnce) ranges_.back().is_written.resize(bytes);
}

void Machine::CheckGlobal(const void* p, size_t bytes, size_t alignment, bool is_write) {
  const uint8_t* begin = static_cast<const uint8_t*>(p);
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) Fail("global memory: misaligned");
  for (Range& range : ranges_) {
    if (begin < range.begin || begin + bytes > range.end) continue;
    if (is_write && range.access == Access::kRead) Fail("global memory: write to an operand");
    if (is_write && range.access == Access::kWriteOnce) {
      for (size_t i = begin - range.begin; i < begin - range.begin + bytes; ++i) {
        if (range.is_written[i]) Fail("global memory: a result is written twice");
        range.is_written[i] = true;
      }
    }
    return;
  }
  Fail("global memory: out of bounds");
}

size_t Machine::SharedOffset(const void* p, size_t bytes, size_t alignment) const {
  const ptrdiff_t offset = static_cast<const uint8_t*>(p) - shared_;
  if (offset < 0 || offset + bytes > shared_bytes_) Fail("shared memory: out of bounds");
  if (offset % alignment != 0) Fail("shared memory: misaligned");
  return offset;
}

void Machine::ReadShared(void* to, const void* from, size_t bytes, size_t alignment) {
  const size_t offset = SharedOffset(from, bytes, alignment);
  const int16_t me = static_cast<int16_t>(current_);
  for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.write_epoch < first_epoch_) Fail("shared memory: read, but never written");
    if (shadow.write_epoch == epoch_ && shadow.writer != me)
      Fail("shared memory: read with no barrier after another thread's write");
    shadow.reader = shadow.read_epoch == epoch_ && shadow.reader != me ? kSeveral : me;
    shadow.read_epoch = epoch_;
  }
  std::memcpy(to, from, bytes);
}

void Machine::WriteShared(void* to, const void* from, size_t bytes, size_t alignment) {
  const size_t offset = SharedOffset(to, bytes, alignment);
  const int16_t me = static_cast<int16_t>(current_);
  for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.write_epoch == epoch_ && shadow.writer != me)
      Fail("shared memory: written with no barrier after another thread's write");
    if (shadow.read_epoch == epoch_ && shadow.reader != me)
      Fail("shared memory: written with no barrier after another thread's read");
    shadow.write_epoch = epoch_;
    shadow.writer = me;
    shadow.fences = fibers_[current_]->fences;
  }
  std::memcpy(to, from, bytes);
}

// ---- asynchronous copies
// -------------------------------------------------------------------------

bool Machine::Defers() {
  return timing_ == Timing::kLazy || (timing_ == Timing::kMixed && random_() % 2 == 0);
}

void Machine::AddCopy(std::function<void()> copy) {
  if (Defers()) {
    fibers_[current_]->copies.Add(std::move(copy));
  } else {
    copy();
  }
}

void Machine::CommitCopies() { fibers_[current_]->copies.Commit(); }
void Machine::WaitForCopies(size_t pending) { fibers_[current_]->copies.Wait(pending); }

// ---- what sm_90a adds
// ----------------------------------------------------------------------------

void Machine::AddBox(std::function<void()> copy) {
  if (Defers()) {
    fibers_[current_]->boxes.Add(std::move(copy));
  } else {
    copy();
  }
}

void Machine::CommitBoxes() { fibers_[current_]->boxes.Commit(); }
void Machine::WaitForBoxes(size_t pending) { fibers_[current_]->boxes.Wait(pending); }

void Machine::FenceProducts() { is_fenced_[current_ / 128] = true; }

void Machine::AddProduct(std::function<void()> product) {
  if (!is_fenced_[current_ / 128]) Fail("a product with no fence after its registers were used");
  // Those of a warpgroup are done in order: so are their sums.
  WorkQueue& products = products_[current_ / 128];
  products.Add(std::move(product));
  if (!Defers()) products.RunAll();
}

void Machine::CommitProducts() { products_[current_ / 128].Commit(); }
void Machine::WaitForProducts(size_t pending) {
  is_fenced_[current_ / 128] = false;
  products_[current_ / 128].Wait(pending);
}

void Machine::GiveRegisters(int count) {
  if (count > RegistersAtStart()) Fail("registers: given up, but more than there were");
  free_registers_ += 128 * (RegistersAtStart() - count);
  progress_ = true;
}

void Machine::TakeRegisters(int count) {
  while (free_registers_ < count - RegistersAtStart()) Yield();
  free_registers_ -= count - RegistersAtStart();
}

void Machine::Deliver(std::function<void()> copy) {
  progress_ = true;
  if (Defers()) {
    deliveries_.push_back(std::move(copy));
  } else {
    copy();
  }
}

void Machine::Land() {
  const size_t i = random_() % deliveries_.size();
  const std::function<void()> copy = std::move(deliveries_[i]);
  deliveries_.erase(deliveries_.begin() + static_cast<ptrdiff_t>(i));
  progress_ = true;
  try {
    copy();
  } catch (const std::exception& error) {
    failure_ = error.what();
  }
}

void Machine::InitBarrier(const uint64_t* barrier, int arrivals) {
  SharedOffset(barrier, sizeof *barrier, sizeof *barrier);
  barriers_[barrier] = {arrivals, 0, 0, 0, false};
}

void Machine::FenceBarriers() {
  for (auto& [place, barrier] : barriers_) barrier.is_fenced = true;
}

Machine::PhaseBarrier& Machine::BarrierAt(const uint64_t* barrier) {
  const auto found = barriers_.find(barrier);
  if (found == barriers_.end()) Fail("barrier: not initialised");
  return found->second;
}

void Machine::CheckBarrier(const uint64_t* barrier) {
  if (!BarrierAt(barrier).is_fenced) Fail("barrier: no fence between its start and a copy");
}

void Machine::EndPhaseIfDone(PhaseBarrier& barrier) {
  if (barrier.arrived > barrier.expected) Fail("barrier: more arrivals than expected");
  if (barrier.arrived != barrier.expected || barrier.pending_bytes != 0) return;
  barrier.phase ^= 1;
  barrier.arrived = 0;
  progress_ = true;
}

void Machine::Arrive(const uint64_t* barrier, int64_t expected_bytes) {
  PhaseBarrier& phases = BarrierAt(barrier);
  phases.pending_bytes += expected_bytes;
  ++phases.arrived;
  EndPhaseIfDone(phases);
}

void Machine::BytesLanded(const uint64_t* barrier, int64_t bytes) {
  PhaseBarrier& phases = BarrierAt(barrier);
  phases.pending_bytes -= bytes;
  EndPhaseIfDone(phases);
}

void Machine::WaitForPhase(const uint64_t* barrier, int parity) {
  while (BarrierAt(barrier).phase == parity) Yield();
}

// Bulk copies and products have no epoch: barriers order them, and the timing shows what does not.
void Machine::WriteSharedAsync(size_t offset, uint16_t value) {
  if (offset + sizeof value > shared_bytes_) Fail("shared memory: out of bounds");
  Shadow& shadow = shadow_[offset / 2];
  shadow.write_epoch = first_epoch_;
  shadow.writer = kAsynchronous;
  std::memcpy(shared_ + offset, &value, sizeof value);
}

void Machine::FenceShared() { ++fibers_[current_]->fences; }

uint16_t Machine::ReadSharedAsync(size_t offset) const {
  if (offset + sizeof(uint16_t) > shared_bytes_) Fail("shared memory: out of bounds");
  const Shadow& shadow = shadow_[offset / 2];
  if (shadow.write_epoch < first_epoch_) Fail("shared memory: read, but never written");
  if (shadow.writer != kAsynchronous && shadow.fences == fibers_[shadow.writer]->fences)
    Fail("shared memory: an asynchronous read of what a thread wrote, with no fence between");
  uint16_t value;
  std::memcpy(&value, shared_ + offset, sizeof value);
  return value;
}

}  // namespace jaxsparse::cuda
