// Scaled dot-product attention in bfloat16: see attention.cpp.
#pragma once

#include <cstdint>

#include "common.h"

namespace qsam2 {

// Tokens of one head: rows at base + b * batch + h * head + i * token.
struct Heads {
  const bf16* base;
  int64_t batch, head, token;
};

// Rows of float: in bfloat16, or the codes of that.
struct Rounded {
  bf16* halves = nullptr;  // exactly one of the two
  uint8_t* codes = nullptr;
  Grid grid;
};

struct AttentionArgs {
  Heads q, k, v;
  int64_t batches, heads, queries, keys, d, value_d;  // channels of queries and keys, and of values
  float scale;
  bool int8_scores;  // multiply queries and keys as codes
  Rounded out;  // [batches, queries, heads, value_d]
};

void attention(const AttentionArgs& args);

struct WindowArgs {
  const bf16* qkv;  // [b, h, w, 3, heads, d]
  const bf16* pad;  // [3, heads, d], what a token outside of the image has
  int64_t b, h, w, heads, d;
  int64_t window, stride;  // the queries of a window are max-pooled by stride
  float scale;
  Rounded out;  // [b, h / stride, w / stride, heads, d]
};

void window_attention(const WindowArgs& args);

}  // namespace qsam2
