// The vocabulary of simd.h on AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common.h"

namespace qsam2 {

using Floats = __m512;   // operators of arithmetic are the compiler's
using Bits = __m512i;    // those of logic too
using Lanes = __mmask16;

constexpr int64_t kLanes = 16;
constexpr int kVectors = 4;
constexpr int kMostRows = 12;
constexpr int32_t kCodesLess = 0;

inline Lanes first_lanes(int64_t n) { return n >= kLanes ? Lanes(0xFFFF) : Lanes((1u << n) - 1); }

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Bits no_bits() { return _mm512_setzero_si512(); }
inline Bits all_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Bits all_bytes(int x) { return _mm512_set1_epi8((char)x); }
inline Floats as_floats(Bits x) { return _mm512_castsi512_ps(x); }
inline Bits as_bits(Floats x) { return _mm512_castps_si512(x); }
inline Floats to_floats(Bits x) { return _mm512_cvtepi32_ps(x); }
inline Bits to_ints(Floats x) { return _mm512_cvtps_epi32(x); }

inline Floats keep(Lanes lanes, Floats x) { return _mm512_maskz_mov_ps(lanes, x); }
inline Floats select(Lanes lanes, Floats x, Floats y) { return _mm512_mask_mov_ps(y, lanes, x); }

// Half to even; a NaN stays one.
inline __m256i to_bf16(Floats x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
#endif
}

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const float* p, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
inline Floats load(const bf16* p, Lanes lanes = 0xFFFF) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16));
}
inline Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
inline Bits load_bytes(const void* p, int64_t n) {
  return _mm512_maskz_loadu_epi8(n >= 64 ? ~0ull : (1ull << n) - 1, p);
}

// Masked stores take many cycles on AMD's cores, so whole registers go without.
inline void store(float* p, Floats x, Lanes lanes = 0xFFFF) {
  if (lanes == 0xFFFF) _mm512_storeu_ps(p, x);
  else _mm512_mask_storeu_ps(p, lanes, x);
}
inline void store(bf16* p, Floats x, Lanes lanes = 0xFFFF) {
  if (lanes == 0xFFFF) _mm256_storeu_si256((__m256i*)p, to_bf16(x));
  else _mm256_mask_storeu_epi16(p, lanes, to_bf16(x));
}
inline void store_u8(uint8_t* p, Bits x, Lanes lanes) {
  if (lanes == 0xFFFF) _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
  else _mm_mask_storeu_epi8(p, lanes, _mm512_cvtepi32_epi8(x));
}
inline void store_ints(int32_t* p, Bits x, Lanes lanes) { _mm512_mask_storeu_epi32(p, lanes, x); }
inline void store_bits(void* p, Bits x) { _mm512_storeu_si512(p, x); }

inline Bits broadcast_32(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline Bits gather_32(const uint8_t* p, int64_t step, Lanes lanes) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i offsets = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)step));
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, offsets, p, 1);
}

inline Floats fma(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
inline Floats fnma(Floats x, Floats y, Floats z) { return _mm512_fnmadd_ps(x, y, z); }
inline Floats min(Floats x, Floats y) { return _mm512_min_ps(x, y); }
inline Floats max(Floats x, Floats y) { return _mm512_max_ps(x, y); }
inline Floats larger(Floats x, Floats y) {
  return _mm512_mask_mov_ps(_mm512_max_ps(x, y), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}
inline Floats abs(Floats x) { return _mm512_abs_ps(x); }
inline Floats round(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats scale_by_power(Floats x, Floats whole) { return _mm512_scalef_ps(x, whole); }
inline Floats reciprocal(Floats x) {  // one Newton step
  const __m512 guess = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0f)));
}
inline Floats complex_product(Floats x, Floats y) {
  const __m512 across = _mm512_mul_ps(_mm512_permute_ps(x, 0xB1), _mm512_movehdup_ps(y));
  return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(y), across);
}

inline float reduce_add(Floats x) { return _mm512_reduce_add_ps(x); }
inline float reduce_max(Floats x) { return _mm512_reduce_max_ps(x); }
inline int32_t reduce_add_ints(Bits x) { return _mm512_reduce_add_epi32(x); }
inline bool all_below(Floats x, Floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_NLT_UQ) == 0; }

inline Bits add_ints(Bits x, Bits y) { return _mm512_add_epi32(x, y); }
inline Bits shift_left_16(Bits x, int64_t n) { return _mm512_slli_epi16(x, n); }
template <int N>
inline Bits shift_right_16(Bits x) { return _mm512_srli_epi16(x, N); }
template <int N>
inline Bits shift_right_32(Bits x) { return _mm512_srli_epi32(x, N); }

inline Bits load_table(const int8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }
inline Bits look_up(Bits table, Bits codes) { return _mm512_shuffle_epi8(table, codes); }
inline Bits where_bits(const void* p, Bits x) {
  uint64_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm512_maskz_mov_epi8(bits, x);
}
inline void store_tests(void* p, Bits x, Bits y) {
  const uint64_t bits = _mm512_test_epi8_mask(x, y);
  std::memcpy(p, &bits, sizeof(bits));
}

// _mm512_dpbusd_epi32, for which GCC 12 copies accumulators around until they spill.
inline void add_dots(Bits& acc, Bits x, Bits w) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w)); }

inline void transpose(Bits (&r)[16]) {
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

}  // namespace qsam2
