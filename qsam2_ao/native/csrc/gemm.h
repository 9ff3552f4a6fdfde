// The int8 matrix multiplication: see gemm.cpp.
#pragma once

#include <cstdint>

#include "common.h"

namespace qsam2 {

enum class Activation { kNone, kGelu, kRelu };

struct GemmArgs {
  const uint8_t* x;       // [m, k] codes
  const uint8_t* weight;  // n x k codes as pack() lays them out
  const int8_t* table;    // 16 values: code -> int8, for fewer than 8 bits
  const float* alpha;     // [n] multiplies the integer sum
  const float* beta;      // [n] is added to it
  int64_t m, n, k;        // k a multiple of 4
  int bits;               // 2, 3, 4 or 8
  Activation activation = Activation::kNone;
  const bf16* residual_bf16 = nullptr;  // at most one of the two; added after the activation
  const float* residual_f32 = nullptr;
  bf16* out_bf16 = nullptr;  // exactly one of the three, [m, n]
  float* out_f32 = nullptr;
  uint8_t* out_u8 = nullptr;  // codes of `grid`
  Grid grid;
  bool narrow = false;  // whether the weight's values are small (dots.h); gemm() looks
};

int64_t packed_bytes(int64_t n, int64_t k, int bits);

// codes: [n, k], below 2^bits; out: packed_bytes zeros; sums: [n], of each channel's codes.
void pack(const uint8_t* codes, int64_t n, int64_t k, int bits, uint8_t* out, int32_t* sums);

void gemm(GemmArgs args);

}  // namespace qsam2
