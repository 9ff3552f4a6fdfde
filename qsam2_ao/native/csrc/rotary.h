// Rotary position encoding of queries and keys: see rotary.cpp.
#pragma once

#include <cstdint>

#include "common.h"

namespace qsam2 {

// Tokens of heads: rows of `d` values at base + b * batch + h * head + i * token.
struct RotateArgs {
  const bf16* x_bf16 = nullptr;  // exactly one of the two inputs
  const float* x_f32 = nullptr;
  int64_t batch, head, token;
  int64_t batches, heads, tokens, d;
  const float* frequencies;  // [period, d], cosine and sine in turn
  int64_t period, rotated;   // the first `rotated` tokens turn, those behind them are only rounded
  bf16* out;                 // [batches, heads, tokens, d]
};

void rotate(const RotateArgs& args);

}  // namespace qsam2
