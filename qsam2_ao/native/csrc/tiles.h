// Products of a few rows with packed panels, whose sums stay in registers: see attention.cpp.
#pragma once

#include <cstdint>

#include "dots.h"
#include "simd.h"

namespace qsam2 {
namespace {

constexpr int kRows = 6;  // rows of a tile: 6 x kVectors accumulators

#ifdef __AVX512BF16__
using Operand = bf16;

inline Floats add_products(Floats acc, Bits x, Bits w) {
  return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
}

inline void store_two(bf16* p, Floats low, Floats high) {
  store_bits(p, (Bits)_mm512_cvtne2ps_pbh(high, low));
}
#else
using Operand = float;

inline Floats add_products(Floats acc, Bits x, Bits w) {
  return fma(as_floats(x), as_floats(w), acc);
}

inline void store_two(float* p, Floats low, Floats high) {
  store(p, low);
  store(p + kLanes, high);
}
#endif

constexpr int64_t kGroup = 4 / sizeof(Operand);  // operands along the sum in 32 bits
constexpr int64_t kWide = kLanes * kGroup;       // operands of a register
constexpr int64_t kCodes = 4;                    // codes along the sum in 32 bits

// Rows of c [rows, 16 * Vectors] (+)= a [rows, depth] times one packed panel, in float32.
template <bool Accumulate>
struct FloatTile {
  const Operand* a;
  int64_t lda;
  const Operand* b;
  int64_t depth;
  float* c;
  int64_t ldc;

  // On its own and unrolled early, without which GCC 12 keeps the accumulators in memory.
  template <int Rows, int Vectors>
  __attribute__((noinline)) void run(int64_t row) const {
    const Operand *x = a + row * lda, *w = b;
    float* out = c + row * ldc;
    Floats acc[Rows][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j)
        acc[i][j] = Accumulate ? load(out + i * ldc + j * kLanes) : zeros();
    for (int64_t k = 0; k < depth; k += kGroup, x += kGroup, w += kWide * Vectors) {
      Bits panel[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) panel[j] = load_bits(w + kWide * j);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Bits value = broadcast_32(x + i * lda);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) acc[i][j] = add_products(acc[i][j], value, panel[j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) store(out + i * ldc + j * kLanes, acc[i][j]);
  }
};

// The same of unsigned codes (less kCodesLess) times signed ones: (a b + offsets) * scales, with an offset and a scale
// per column.
struct CodeTile {
  const uint8_t* a;
  const int8_t* b;
  int64_t depth;
  float* c;
  int64_t ldc;
  const int32_t* offsets;
  const float* scales;

  template <int Rows, int Vectors>
  __attribute__((noinline)) void run(int64_t row) const {
    float* out = c + row * ldc;
    int32_t sums[Rows][Vectors][kLanes];
    sum_steps<Rows, Vectors>(a + row * depth, depth, b, sums);
    // Loops, since GCC 12 would see through the sums otherwise, and keep all accumulators in memory.
#pragma GCC unroll 1
    for (int j = 0; j < Vectors; ++j) {
      const Bits offset = load_bits(offsets + j * kLanes);
      const Floats scale = load(scales + j * kLanes);
#pragma GCC unroll 1
      for (int i = 0; i < Rows; ++i)
        store(out + i * ldc + j * kLanes, to_floats(add_ints(load_bits(sums[i][j]), offset)) * scale);
    }
  }
};

template <int Rows, int Vectors, typename Tile>
void rest(const Tile& tile, int64_t row, int64_t rows) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return tile.template run<Rows, Vectors>(row);
    rest<Rows - 1, Vectors>(tile, row, rows);
  }
}

template <int Vectors, typename Tile>
void panel(const Tile& tile, int64_t rows) {
  int64_t row = 0;
  for (; rows - row >= kRows; row += kRows) tile.template run<kRows, Vectors>(row);
  rest<kRows - 1, Vectors>(tile, row, rows - row);
}

// All rows of a panel of up to kVectors registers.
template <int Most = kVectors, typename Tile>
void multiply(int64_t vectors, const Tile& tile, int64_t rows) {
  if constexpr (Most > 1)
    if (vectors < Most) return multiply<Most - 1>(vectors, tile, rows);
  panel<Most>(tile, rows);
}

}  // namespace
}  // namespace qsam2
