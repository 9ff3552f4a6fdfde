#include "pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace qsam2 {
namespace {

constexpr size_t kSmall = size_t(1) << 20, kPage = size_t(2) << 20, kKept = size_t(256) << 20;

class Pool {
 public:
  // A block of at least `bytes`, and its size.
  std::pair<void*, size_t> take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = free_.lower_bound(bytes);
      if (found != free_.end() && found->first <= bytes + bytes / 4) {
        const std::pair<void*, size_t> block{found->second, found->first};
        kept_ -= block.second;
        free_.erase(found);
        return block;
      }
    }
    void* block = std::aligned_alloc(kPage, bytes);
    if (!block) throw std::bad_alloc();
    madvise(block, bytes, MADV_HUGEPAGE);  // a hint
    return {block, bytes};
  }

  void give(void* block, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace(bytes, block);
    kept_ += bytes;
    while (kept_ > kKept) {  // the largest first
      const auto last = std::prev(free_.end());
      kept_ -= last->first;
      std::free(last->second);
      free_.erase(last);
    }
  }

 private:
  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  size_t kept_ = 0;
};

Pool& pool() {
  static Pool* const instance = new Pool;  // outlives every tensor
  return *instance;
}

}  // namespace

at::Tensor pooled(at::IntArrayRef shape, const at::TensorOptions& options) {
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : shape) bytes *= size;
  if (bytes < kSmall) return at::empty(shape, options);
  const auto block = pool().take((bytes + kPage - 1) / kPage * kPage);
  return at::from_blob(block.first, shape, [size = block.second](void* p) { pool().give(p, size); }, options);
}

}  // namespace qsam2
