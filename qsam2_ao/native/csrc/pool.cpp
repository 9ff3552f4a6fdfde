#include "pool.h"

#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace qsam2 {
namespace {

constexpr size_t kPage = size_t(2) << 20, kKept = size_t(256) << 20;

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kIdle(30);

class Pool {
 public:
  // Across a fork nobody holds the mutex, and the child knows that the thread below did not come along.
  void before_fork() { mutex_.lock(); }
  void after_fork(bool child) {
    if (child) waiting_ = false;
    mutex_.unlock();
  }

  Block take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = free_.lower_bound(bytes);
      if (found != free_.end() && found->first <= bytes + bytes / 4) {
        const Block block{found->second, found->first};
        kept_ -= block.bytes;
        free_.erase(found);
        return block;
      }
    }
    void* block = std::aligned_alloc(kPage, bytes);
    if (!block) throw std::bad_alloc();
    madvise(block, bytes, MADV_HUGEPAGE);  // a hint
    return {block, bytes};
  }

  void give(const Block& block) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace(block.bytes, block.data);
    kept_ += block.bytes;
    while (kept_ > kKept) {  // the largest first
      const auto last = std::prev(free_.end());
      kept_ -= last->first;
      std::free(last->second);
      free_.erase(last);
    }
    used_ = Clock::now();
    if (!waiting_ && kept_) wait_until_idle();
  }

  // Frees all blocks, and has the C library return them to the system; how many bytes they were.
  size_t trim() {
    std::lock_guard<std::mutex> lock(mutex_);
    return free_all();
  }

 private:
  size_t free_all() {
    const size_t freed = kept_;
    for (const auto& block : free_) std::free(block.second);
    free_.clear();
    kept_ = 0;
#ifdef __GLIBC__
    if (freed) malloc_trim(0);
#endif
    return freed;
  }

  // One thread, which ends when it has freed what was idle.
  void wait_until_idle() {
    try {
      std::thread([this] {
        std::unique_lock<std::mutex> lock(mutex_);
        while (kept_ && Clock::now() < used_ + kIdle) {
          const auto until = used_ + kIdle;
          lock.unlock();
          std::this_thread::sleep_until(until);
          lock.lock();
        }
        free_all();
        waiting_ = false;
      }).detach();
      waiting_ = true;
    } catch (const std::system_error&) {  // no thread to be had: the blocks are kept
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  size_t kept_ = 0;
  Clock::time_point used_;
  bool waiting_ = false;
};

Pool* make_pool();

Pool& pool() {
  static Pool* const instance = make_pool();  // outlives every tensor
  return *instance;
}

Pool* make_pool() {
  pthread_atfork([] { pool().before_fork(); }, [] { pool().after_fork(false); }, [] { pool().after_fork(true); });
  return new Pool;
}

}  // namespace

Block take_block(size_t bytes) { return pool().take((bytes + kPage - 1) / kPage * kPage); }

void give_block(const Block& block) { pool().give(block); }

int64_t trim_pool() { return (int64_t)pool().trim(); }

}  // namespace qsam2
