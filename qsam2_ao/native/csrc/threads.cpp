#include "threads.h"

#include <ATen/Parallel.h>

namespace qsam2 {

int64_t threads() { return at::get_num_threads(); }

void on_threads(int64_t n, const std::function<void(int64_t, int64_t)>& f) { at::parallel_for(0, n, 1, f); }

}  // namespace qsam2
