// What the operators and the kernels of every CPU share.
#pragma once

#include <cstdint>

namespace qsam2 {

using bf16 = uint16_t;  // the bits of a bfloat16

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A uniform grid of codes, the smallest of which is 0.
struct Grid {
  float scale = 1.0f;
  float zero_point = 0.0f;
  float high = 255.0f;
};

}  // namespace qsam2
