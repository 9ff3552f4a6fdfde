#include "threads.h"

#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <mutex>
#include <stdexcept>

namespace qsam2 {

int64_t threads() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

void on_threads(int64_t n, const std::function<void(int64_t, int64_t)>& f) {
  // No exception crosses torch's interface, which is of C; it goes on behind it.
  struct Call {
    const std::function<void(int64_t, int64_t)>& f;
    std::mutex mutex;
    std::exception_ptr error;
  } call{f};
  const auto run = [](int64_t begin, int64_t end, void* context) {
    Call& call = *static_cast<Call*>(context);
    try {
      call.f(begin, end);
    } catch (...) {
      std::lock_guard<std::mutex> lock(call.mutex);
      call.error = std::current_exception();
    }
  };
  if (torch_parallel_for(0, n, 1, run, &call)) throw std::runtime_error("qsam2: torch's threads cannot be had");
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace qsam2
