// What surrounds the matrix products of transposed convolutions: see upscale.cpp.
#pragma once

#include <cstdint>

#include "common.h"

namespace qsam2 {

struct PixelsArgs {
  const bf16* x_bf16 = nullptr;  // exactly one of the two inputs; [b, h, w, k, k, c]
  const float* x_f32 = nullptr;
  const float* bias;  // [c]
  int64_t b, h, w, k, c;
  bf16* out_bf16 = nullptr;  // exactly one of the two; [b, h k, w k, c]
  float* out_f32 = nullptr;
};

// The k x k pixels of each token to their places, plus the bias.
void pixels(const PixelsArgs& args);

struct GeluPlanesArgs {
  const bf16* x_bf16 = nullptr;  // exactly one of the two inputs; [b, n, c], or [b, c, n] if planes
  const float* x_f32 = nullptr;
  bool planes;
  int64_t b, n, c;
  bf16* out_bf16 = nullptr;  // exactly one of the two; [b, c, n]
  float* out_f32 = nullptr;
};

// GELU of an image whose channels are last or first, into one whose channels are first.
void gelu_planes(const GeluPlanesArgs& args);

}  // namespace qsam2
