// The threads of the process, which torch keeps: see threads.cpp.
#pragma once

#include <cstdint>
#include <functional>

namespace qsam2 {

// How many may share work.
int64_t threads();

// Calls f(begin, end) on ranges that make up [0, n), each on a thread; on one if this is one of them already.
void on_threads(int64_t n, const std::function<void(int64_t, int64_t)>& f);

}  // namespace qsam2
