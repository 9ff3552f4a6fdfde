// Work over threads on machines that do other things too.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "threads.h"

namespace qsam2 {

// Calls work(chunks) on several threads, each of which calls chunks(f) once: that calls f(begin, end) on one chunk of
// [0, tasks) after the other. Every thread has a range of its own, as with torch's own loops, so that it finds in its
// cache what it wrote before; one that is through takes chunks of the others. So a thread that the system has put aside
// holds up the chunk it is at, not its whole range.
//
// `worth` is how many tasks are worth a thread: less work than it takes to wake one stays where it is.
template <typename Work>
void in_chunks(int64_t tasks, int64_t worth, const Work& work) {
  constexpr int64_t kChunks = 8;  // of a thread
  const int64_t threads = std::min<int64_t>(qsam2::threads(), tasks / worth);
  if (threads <= 1) {
    if (tasks > 0) work([&](const auto& f) { f(0, tasks); });
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const auto ranges = std::make_unique<Range[]>(threads);
  for (int64_t t = 0; t < threads; ++t) {
    ranges[t].next = tasks * t / threads;
    ranges[t].end = tasks * (t + 1) / threads;
  }
  const int64_t chunk = std::max<int64_t>(1, tasks / (threads * kChunks));
  on_threads(threads, [&](int64_t first, int64_t last) {
    work([&](const auto& f) {
      for (int64_t t = first; t < last; ++t)
        for (int64_t i = 0; i < threads; ++i) {
          Range& range = ranges[(t + i) % threads];
          for (int64_t begin; (begin = range.next.fetch_add(chunk)) < range.end;)
            f(begin, std::min(begin + chunk, range.end));
        }
    });
  });
}

// Calls f(begin, end) on the chunks.
template <typename F>
void parallel(int64_t tasks, int64_t worth, const F& f) {
  in_chunks(tasks, worth, [&](const auto& chunks) { chunks(f); });
}

// Calls work(each) on the threads, which make their scratch memory and then call each(f): that calls f(task).
template <typename Work>
void parallel_with_scratch(int64_t tasks, int64_t worth, const Work& work) {
  in_chunks(tasks, worth, [&](const auto& chunks) {
    work([&](const auto& f) {
      chunks([&](int64_t begin, int64_t end) {
        for (; begin < end; ++begin) f(begin);
      });
    });
  });
}

// So many tasks of a cost are worth a thread; the cost in multiplications of int8, some 10^11 of which a core does a
// second. Waking a thread takes some microseconds.
inline int64_t worth_a_thread(double cost_of_task) {
  return std::max<int64_t>(1, static_cast<int64_t>((1 << 21) / std::max(1.0, cost_of_task)));
}

}  // namespace qsam2
