// Pools for tests.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "core/task_pool.h"

namespace jaxsparse::testing {

// Threads that run tasks in order of arrival.
class ThreadPool final : public TaskPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~ThreadPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t num_threads() const override { return static_cast<int64_t>(threads_.size()); }
  void Schedule(std::function<void()> task) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
      ++num_scheduled_;
    }
    changed_.notify_one();
  }
  int64_t num_scheduled() {
    std::lock_guard<std::mutex> lock(mutex_);
    return num_scheduled_;
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  int64_t num_scheduled_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// Claims threads, and runs tasks only when told to: a pool that is busy elsewhere.
class BusyPool final : public TaskPool {
 public:
  int64_t num_threads() const override { return 4; }
  void Schedule(std::function<void()> task) override { tasks_.push_back(std::move(task)); }
  void RunAll() {
    for (auto& task : tasks_) task();
    tasks_.clear();
  }
  size_t size() const { return tasks_.size(); }

 private:
  std::vector<std::function<void()>> tasks_;
};

// Runs each task at once, inside Schedule.
class ImmediatePool final : public TaskPool {
 public:
  int64_t num_threads() const override { return 4; }
  void Schedule(std::function<void()> task) override { task(); }
};

}  // namespace jaxsparse::testing
