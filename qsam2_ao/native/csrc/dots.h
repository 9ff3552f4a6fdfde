// The sums of a tile of codes, which stay in registers: see gemm.cpp. Inlined at once, without which GCC 12 keeps some
// tiles' sums in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace qsam2 {
namespace {

// Rows of a tile of so many registers: as many as keep 24 accumulators of the CPU busy.
template <int Vectors>
constexpr int kTileRows = std::min(kMostRows, 24 / Vectors);

// sums[i][v][c]: of the k codes at x + i * k, less kCodesLess, times column c of vector v of a panel.
template <int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_steps(const uint8_t* x, int64_t k, const int8_t* panel,
                                             int32_t (&sums)[Rows][Vectors][kLanes]) {
  Bits acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) acc[i][j] = no_bits();
  for (int64_t step = 0; step < k / 4; ++step, x += 4, panel += 64 * Vectors) {
    Bits w[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) w[j] = load_bits(panel + 64 * j);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      const Bits a = broadcast_32(x + i * k);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) add_dots(acc[i][j], a, w[j]);
    }
  }
  // Through memory, since a loop over registers would keep all of them there from the start.
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store_bits(sums[i][j], acc[i][j]);
}

#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr int kSteps = 2;  // of four inputs, which one instruction sums: panels have so many side by side

// The panel of a single vector, as its two steps lie one behind the other -> as SMMLA takes them: the eight inputs of
// each channel side by side, and zeros behind an odd number of steps.
inline void join_steps(const int8_t* from, int64_t steps, int8_t* to) {
  for (int64_t s = 0; s < steps; s += 2, from += 128, to += 128) {
    const Bits low = load_bits(from), high = s + 1 < steps ? load_bits(from + 64) : no_bits();
    const auto zip = [](int32x4_t x, int32x4_t y, int8_t* p) {
      vst1q_s8(p, vreinterpretq_s8_s32(vzip1q_s32(x, y)));
      vst1q_s8(p + 16, vreinterpretq_s8_s32(vzip2q_s32(x, y)));
    };
    zip(low.a, high.a, to);
    zip(low.b, high.b, to + 32);
    zip(low.c, high.c, to + 64);
    zip(low.d, high.d, to + 96);
  }
}

// The same of a single vector whose steps are joined: SMMLA multiplies two rows by two columns, and eight inputs.
template <int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_codes(const uint8_t* x, int64_t k, const int8_t* panel,
                                             int32_t (&sums)[Rows][Vectors][kLanes]) {
  static_assert(Vectors == 1);
  constexpr int kPairs = (Rows + 1) / 2, kQuads = 8;
  int32x4_t acc[kPairs][kQuads];
#pragma GCC unroll 3
  for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; ++j) acc[i][j] = vdupq_n_s32(0);
  const auto step = [&](const auto& inputs) {
    int8x16_t two[kPairs];
#pragma GCC unroll 3
    for (int i = 0; i < kPairs; ++i) {
      const uint8_t *first = x + 2 * i * k, *second = x + std::min(2 * i + 1, Rows - 1) * k;
      two[i] = vreinterpretq_s8_u8(veorq_u8(vcombine_u8(inputs(first), inputs(second)), vdupq_n_u8(kCodesLess)));
    }
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; ++j) {
      const int8x16_t w = vld1q_s8(panel + 16 * j);
#pragma GCC unroll 3
      for (int i = 0; i < kPairs; ++i) acc[i][j] = vmmlaq_s32(acc[i][j], two[i], w);
    }
  };
  for (int64_t at = 0; at + 8 <= k; at += 8, x += 8, panel += 128) step([](const uint8_t* p) { return vld1_u8(p); });
  if (k % 8)  // the last four, beside weights that are zero
    step([](const uint8_t* p) {
      uint32_t four;
      std::memcpy(&four, p, sizeof(four));
      return vcreate_u8(four);
    });
#pragma GCC unroll 3
  for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; ++j) {
      vst1_s32(sums[2 * i][0] + 2 * j, vget_low_s32(acc[i][j]));
      if (2 * i + 1 < Rows) vst1_s32(sums[std::min(2 * i + 1, Rows - 1)][0] + 2 * j, vget_high_s32(acc[i][j]));
    }
}
#else
constexpr int kSteps = 1;

inline void join_steps(const int8_t*, int64_t, int8_t*) {}

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_codes(const uint8_t* x, int64_t k, const int8_t* panel,
                                             int32_t (&sums)[Rows][Vectors][kLanes]) {
  sum_steps<Rows, Vectors>(x, k, panel, sums);
}
#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
constexpr int kNarrow = 16;      // weights of which VPMADDUBSW takes the products
constexpr int kNarrowSteps = 4;  // and adds so many pairs of them: 4 * 2 * 255 * 16 < 2^15

// Adds to sums the products of the first Steps steps.
template <int Steps, int Rows>
[[gnu::always_inline]] inline void add_narrow(const uint8_t* x, int64_t k, const int8_t* panel,
                                              int32_t (&sums)[Rows][1][kLanes]) {
  const auto products = [](__m256i codes, __m256i weights) { return _mm256_maddubs_epi16(codes, weights); };
  // _mm256_add_epi16, whose order GCC 12 changes until registers spill.
  const auto add = [](__m256i p, __m256i q) {
    asm("vpaddw %1, %0, %0" : "+x"(p) : "x"(q));
    return p;
  };
  const auto widen = [](__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); };
  Bits pairs[Rows];
#pragma GCC unroll 4
  for (int step = 0; step < Steps; ++step) {
    const Bits w = load_bits(panel + 64 * step);
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const Bits two = halves(products, broadcast_32(x + i * k + 4 * step), w);
      pairs[i] = step == 0 ? two : halves(add, pairs[i], two);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) store_bits(sums[i][0], add_ints(load_bits(sums[i][0]), halves(widen, pairs[i])));
}

// sum_codes of weights between -kNarrow and kNarrow.
template <int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_narrow_codes(const uint8_t* x, int64_t k, const int8_t* panel,
                                                    int32_t (&sums)[Rows][Vectors][kLanes]) {
  static_assert(Vectors == 1);
  std::fill_n(&sums[0][0][0], Rows * kLanes, 0);
  int64_t steps = k / 4;
  for (; steps >= kNarrowSteps; steps -= kNarrowSteps, x += 4 * kNarrowSteps, panel += 64 * kNarrowSteps)
    add_narrow<kNarrowSteps, Rows>(x, k, panel, sums);
  for (; steps > 0; --steps, x += 4, panel += 64) add_narrow<1, Rows>(x, k, panel, sums);
}
#else
constexpr int kNarrow = 0;

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_narrow_codes(const uint8_t* x, int64_t k, const int8_t* panel,
                                                    int32_t (&sums)[Rows][Vectors][kLanes]) {
  sum_codes<Rows, Vectors>(x, k, panel, sums);
}
#endif

}  // namespace
}  // namespace qsam2
