// The vocabulary of simd.h on AVX2 with FMA, and with or without AVX-VNNI: two registers at once.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "common.h"
#include "simd_counted.h"

namespace qsam2 {

struct Floats {
  __m256 a, b;
};
struct Bits {
  __m256i a, b;
};

constexpr int kVectors = 1;
constexpr int kMostRows = 6;
constexpr int32_t kCodesLess = 0;

inline Floats pair(__m256 a, __m256 b) { return {a, b}; }
inline Bits pair(__m256i a, __m256i b) { return {a, b}; }
// f of each half.
template <typename F, typename... X>
[[gnu::always_inline]] inline auto halves(const F& f, const X&... x) {
  return pair(f(x.a...), f(x.b...));
}

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Bits all_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Bits all_bytes(int x) { return {_mm256_set1_epi8((char)x), _mm256_set1_epi8((char)x)}; }
inline Floats zeros() { return all(0.0f); }
inline Bits no_bits() { return all_ints(0); }
inline Floats as_floats(Bits x) { return halves([](__m256i h) { return _mm256_castsi256_ps(h); }, x); }
inline Bits as_bits(Floats x) { return halves([](__m256 h) { return _mm256_castps_si256(h); }, x); }
inline Floats to_floats(Bits x) { return halves([](__m256i h) { return _mm256_cvtepi32_ps(h); }, x); }
inline Bits to_ints(Floats x) { return halves([](__m256 h) { return _mm256_cvtps_epi32(h); }, x); }

inline Floats operator+(Floats x, Floats y) { return {x.a + y.a, x.b + y.b}; }
inline Floats operator-(Floats x, Floats y) { return {x.a - y.a, x.b - y.b}; }
inline Floats operator*(Floats x, Floats y) { return {x.a * y.a, x.b * y.b}; }
inline Floats operator/(Floats x, Floats y) { return {x.a / y.a, x.b / y.b}; }
inline Bits operator&(Bits x, Bits y) { return {x.a & y.a, x.b & y.b}; }
inline Bits operator|(Bits x, Bits y) { return {x.a | y.a, x.b | y.b}; }
inline Bits operator^(Bits x, Bits y) { return {x.a ^ y.a, x.b ^ y.b}; }

inline Floats select(Lanes lanes, Floats x, Floats y) {
  const __m256i n = _mm256_set1_epi32((int)lanes.n), lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto part = [&](__m256i at, __m256 p, __m256 q) {
    return _mm256_blendv_ps(q, p, _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, at)));
  };
  return {part(lane, x.a, y.a), part(_mm256_add_epi32(lane, _mm256_set1_epi32(8)), x.b, y.b)};
}
inline Floats keep(Lanes lanes, Floats x) { return lanes.n == kLanes ? x : select(lanes, x, zeros()); }

// 16 values of 32 bits, all below 2^16 -> 16 bits each.
inline __m256i narrowed(Bits x) { return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8); }

// Half to even; a NaN stays one.
inline __m256i to_bf16(Floats x) {
  const auto rounded = [](__m256 h) {
    const __m256i bits = _mm256_castps_si256(h), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i near = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(near, nan, _mm256_castps_si256(_mm256_cmp_ps(h, h, _CMP_UNORD_Q)));
  };
  return narrowed(halves(rounded, x));
}

inline Bits load_bits(const void* p) {
  const auto* from = (const __m256i*)p;
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline Bits load_bytes(const void* p, int64_t n) {
  if (n >= 64) return load_bits(p);
  uint8_t bytes[64] = {};
  std::memcpy(bytes, p, n);
  return load_bits(bytes);
}
inline Floats load(const float* p, Lanes lanes = {kLanes}) { return as_floats(load_bytes(p, 4 * lanes.n)); }
inline Floats load(const bf16* p, Lanes lanes = {kLanes}) {
  bf16 part[kLanes] = {};
  if (lanes.n < kLanes) p = (const bf16*)std::memcpy(part, p, 2 * lanes.n);
  const auto wide = [](const bf16* from) {
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
  };
  return as_floats({wide(p), wide(p + 8)});
}

inline void store_bits(void* p, Bits x) {
  auto* to = (__m256i*)p;
  _mm256_storeu_si256(to, x.a);
  _mm256_storeu_si256(to + 1, x.b);
}
inline void store_ints(int32_t* p, Bits x, Lanes lanes) {
  store_lanes(p, lanes, [&](int32_t* to) { store_bits(to, x); });
}
inline void store(float* p, Floats x, Lanes lanes = {kLanes}) {
  store_lanes(p, lanes, [&](float* to) { store_bits(to, as_bits(x)); });
}
inline void store(bf16* p, Floats x, Lanes lanes = {kLanes}) {
  store_lanes(p, lanes, [&](bf16* to) { _mm256_storeu_si256((__m256i*)to, to_bf16(x)); });
}
inline void store_u8(uint8_t* p, Bits x, Lanes lanes) {
  store_lanes(p, lanes, [&](uint8_t* to) {
    const __m256i words = narrowed(x & all_ints(0xFF));
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128((__m128i*)to, _mm_packus_epi16(low, high));
  });
}

inline Bits broadcast_32(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return all_ints(bits);
}
inline Bits gather_32(const uint8_t* p, int64_t step, Lanes lanes) {
  int32_t values[kLanes] = {};
  for (int64_t i = 0; i < lanes.n; ++i) std::memcpy(values + i, p + i * step, 4);
  return load_bits(values);
}

inline Floats fma(Floats x, Floats y, Floats z) {
  return halves([](__m256 p, __m256 q, __m256 r) { return _mm256_fmadd_ps(p, q, r); }, x, y, z);
}
inline Floats fnma(Floats x, Floats y, Floats z) {
  return halves([](__m256 p, __m256 q, __m256 r) { return _mm256_fnmadd_ps(p, q, r); }, x, y, z);
}
inline Floats min(Floats x, Floats y) {
  return halves([](__m256 p, __m256 q) { return _mm256_min_ps(p, q); }, x, y);
}
inline Floats max(Floats x, Floats y) {
  return halves([](__m256 p, __m256 q) { return _mm256_max_ps(p, q); }, x, y);
}
inline Floats larger(Floats x, Floats y) {
  const auto part = [](__m256 p, __m256 q) {
    return _mm256_blendv_ps(_mm256_max_ps(p, q), p, _mm256_cmp_ps(p, p, _CMP_UNORD_Q));
  };
  return halves(part, x, y);
}
inline Floats abs(Floats x) {
  return as_floats(as_bits(x) & all_ints(0x7FFFFFFF));
}
inline Floats round(Floats x) {
  return halves([](__m256 h) { return _mm256_round_ps(h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }, x);
}
inline Floats reciprocal(Floats x) { return all(1.0f) / x; }
inline Floats scale_by_power(Floats x, Floats whole) {
  const auto power = [](__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  };
  const auto scaled = [&](__m256 h, __m256 w) {
    // In two steps, whose exponents float32 has, also where the result is subnormal or infinite.
    const __m256 near = _mm256_max_ps(_mm256_min_ps(w, _mm256_set1_ps(252.0f)), _mm256_set1_ps(-252.0f));
    const __m256i n = _mm256_cvtps_epi32(near), half = _mm256_srai_epi32(n, 1);
    const __m256 product = h * power(half) * power(_mm256_sub_epi32(n, half));
    const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), w);
    const __m256 endless = _mm256_cmp_ps(size, infinity, _CMP_EQ_OQ);
    return _mm256_blendv_ps(product, _mm256_max_ps(w, _mm256_setzero_ps()), endless);
  };
  return halves(scaled, x, whole);
}
inline Floats complex_product(Floats x, Floats y) {
  const auto product = [](__m256 p, __m256 q) {
    const __m256 across = _mm256_permute_ps(p, 0xB1) * _mm256_movehdup_ps(q);
    return _mm256_fmaddsub_ps(p, _mm256_moveldup_ps(q), across);
  };
  return halves(product, x, y);
}

// f of two values of 32 bits -> f of all sixteen.
template <typename T, typename F>
inline T reduce(Bits x, const F& f) {
  T values[kLanes];
  store_bits(values, x);
  for (int64_t n = kLanes / 2; n > 0; n /= 2)
    for (int64_t i = 0; i < n; ++i) values[i] = f(values[i], values[i + n]);
  return values[0];
}
inline float reduce_add(Floats x) {
  return reduce<float>(as_bits(x), [](float p, float q) { return p + q; });
}
inline float reduce_max(Floats x) {
  return reduce<float>(as_bits(x), [](float p, float q) { return p > q ? p : q; });
}
inline int32_t reduce_add_ints(Bits x) {
  return reduce<int32_t>(x, [](int32_t p, int32_t q) { return p + q; });
}
inline bool all_below(Floats x, Floats y) {
  const Floats below = halves([](__m256 p, __m256 q) { return _mm256_cmp_ps(p, q, _CMP_LT_OQ); }, x, y);
  return _mm256_movemask_ps(_mm256_and_ps(below.a, below.b)) == 0xFF;
}

inline Bits add_ints(Bits x, Bits y) {
  return halves([](__m256i p, __m256i q) { return _mm256_add_epi32(p, q); }, x, y);
}
inline Bits shift_left_16(Bits x, int64_t n) {
  return halves([&](__m256i h) { return _mm256_slli_epi16(h, (int)n); }, x);
}
template <int N>
inline Bits shift_right_16(Bits x) {
  return halves([](__m256i h) { return _mm256_srli_epi16(h, N); }, x);
}
template <int N>
inline Bits shift_right_32(Bits x) {
  return halves([](__m256i h) { return _mm256_srli_epi32(h, N); }, x);
}

inline Bits load_table(const int8_t* p) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  return {table, table};
}
inline Bits look_up(Bits table, Bits codes) {
  return halves([](__m256i t, __m256i h) { return _mm256_shuffle_epi8(t, h); }, table, codes);
}
inline Bits where_bits(const void* p, Bits x) {
  const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const auto part = [&](int at, __m256i h) {
    int32_t bits;
    std::memcpy(&bits, (const uint8_t*)p + at, sizeof(bits));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    return _mm256_and_si256(h, _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit));
  };
  return {part(0, x.a), part(4, x.b)};
}
inline void store_tests(void* p, Bits x, Bits y) {
  const Bits common = x & y;
  const auto part = [](__m256i h) {
    return ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(h, _mm256_setzero_si256()));
  };
  const uint32_t bits[2] = {part(common.a), part(common.b)};
  std::memcpy(p, bits, sizeof(bits));
}

#ifdef __AVXVNNI__
inline void add_dots(Bits& acc, Bits x, Bits w) {
  const auto add = [](__m256i sum, __m256i codes, __m256i weights) {
    return _mm256_dpbusd_avx_epi32(sum, codes, weights);
  };
  acc = halves(add, acc, x, w);
}
#else
// In 16 bits, two of which have room for their sum: VPMADDUBSW would saturate.
inline void add_dots(Bits& acc, Bits x, Bits w) {
  const auto add = [](__m256i sum, __m256i codes, __m256i weights) {
    const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(0xFF)), odd = _mm256_srli_epi16(codes, 8);
    const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8), high = _mm256_srai_epi16(weights, 8);
    const __m256i four = _mm256_add_epi32(_mm256_madd_epi16(even, low), _mm256_madd_epi16(odd, high));
    return _mm256_add_epi32(sum, four);
  };
  acc = halves(add, acc, x, w);
}
#endif

inline void transpose(__m256i (&r)[8]) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}
inline void transpose(Bits (&r)[16]) {
  __m256i corner[2][2][8];
  for (int i = 0; i < 16; ++i) {
    corner[i / 8][0][i % 8] = r[i].a;
    corner[i / 8][1][i % 8] = r[i].b;
  }
  for (auto& row : corner)
    for (auto& part : row) transpose(part);
  for (int i = 0; i < 16; ++i) r[i] = {corner[0][i / 8][i % 8], corner[1][i / 8][i % 8]};
}

}  // namespace qsam2
