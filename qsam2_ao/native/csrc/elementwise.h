// Rounding to codes, alone or behind a layer normalization: see elementwise.cpp.
#pragma once

#include <cstdint>

#include "common.h"

namespace qsam2 {

// Exactly one of the two inputs; n values.
void quantize(const bf16* x_bf16, const float* x_f32, int64_t n, const Grid& grid, uint8_t* out);

struct LayerNormArgs {
  const bf16* x_bf16 = nullptr;  // exactly one of the two inputs; [rows, n]
  const float* x_f32 = nullptr;
  int64_t rows, n;
  const float *weight, *bias;  // [n]
  float eps;
  bf16* out_bf16 = nullptr;  // exactly one of the two
  uint8_t* out_u8 = nullptr;
  Grid grid;
};

void layer_norm(const LayerNormArgs& args);

}  // namespace qsam2
