// Products of a few rows with packed panels, whose sums stay in registers: see attention.cpp.
#pragma once

#include <cstdint>

#include "simd.h"

namespace qsam2 {
namespace {

constexpr int kRows = 6;  // rows of a tile: 6 x 4 accumulators

#ifdef __AVX512BF16__
using Operand = bf16;

inline __m512 add_products(__m512 acc, __m512i x, __m512i w) {
  return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
}

inline void store_two(bf16* p, __m512 low, __m512 high) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#else
using Operand = float;

inline __m512 add_products(__m512 acc, __m512i x, __m512i w) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), acc);
}

inline void store_two(float* p, __m512 low, __m512 high) {
  store(p, low);
  store(p + kLanes, high);
}
#endif

constexpr int64_t kGroup = 4 / sizeof(Operand);  // operands along the sum in 32 bits
constexpr int64_t kWide = kLanes * kGroup;       // operands of a register
constexpr int64_t kCodes = 4;                    // codes along the sum in 32 bits

inline void transpose(__m512i (&r)[16]) {  // 16 x 16 values of 32 bits
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Rows of c [rows, 16 * Vectors] (+)= a [rows, depth] times one packed panel, in float32.
template <bool Accumulate>
struct FloatTile {
  const Operand* a;
  int64_t lda;
  const Operand* b;
  int64_t depth;
  float* c;
  int64_t ldc;

  template <int Rows, int Vectors>
  void run(int64_t row) const {
    const Operand *x = a + row * lda, *w = b;
    float* out = c + row * ldc;
    __m512 acc[Rows][Vectors];
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Vectors; ++j)
        acc[i][j] = Accumulate ? _mm512_loadu_ps(out + i * ldc + j * kLanes) : _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += kGroup, x += kGroup, w += kWide * Vectors) {
      __m512i panel[Vectors];
      for (int j = 0; j < Vectors; ++j) panel[j] = _mm512_loadu_si512(w + kWide * j);
      for (int i = 0; i < Rows; ++i) {
        const __m512i value = broadcast_32(x + i * lda);
        for (int j = 0; j < Vectors; ++j) acc[i][j] = add_products(acc[i][j], value, panel[j]);
      }
    }
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Vectors; ++j) _mm512_storeu_ps(out + i * ldc + j * kLanes, acc[i][j]);
  }
};

// The same of unsigned codes times signed ones: (a b + offsets) * scales, with one offset and one scale per column.
struct CodeTile {
  const uint8_t* a;
  int64_t lda;
  const int8_t* b;
  int64_t depth;
  float* c;
  int64_t ldc;
  const int32_t* offsets;
  const float* scales;

  // On its own and unrolled early, without which GCC 12 keeps the accumulators in memory.
  template <int Rows, int Vectors>
  __attribute__((noinline)) void run(int64_t row) const {
    const uint8_t* x = a + row * lda;
    const int8_t* w = b;
    float* out = c + row * ldc;
    __m512i acc[Rows][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) acc[i][j] = _mm512_loadu_si512(offsets + j * kLanes);
    for (int64_t k = 0; k < depth; k += kCodes, x += kCodes, w += kLanes * kCodes * Vectors) {
      __m512i panel[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) panel[j] = _mm512_loadu_si512(w + kLanes * kCodes * j);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const __m512i codes = broadcast_32(x + i * lda);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) add_dots(acc[i][j], codes, panel[j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        const __m512 scale = _mm512_loadu_ps(scales + j * kLanes);
        _mm512_storeu_ps(out + i * ldc + j * kLanes, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][j]), scale));
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

// All rows of a panel of up to four registers.
template <typename Tile>
void multiply(int64_t vectors, const Tile& tile, int64_t rows) {
  switch (vectors) {
    case 4: return panel<4>(tile, rows);
    case 3: return panel<3>(tile, rows);
    case 2: return panel<2>(tile, rows);
    default: return panel<1>(tile, rows);
  }
}

}  // namespace
}  // namespace qsam2
