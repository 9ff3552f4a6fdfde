// Small helpers on AVX-512 registers that the kernels share.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qsam2 {

using bf16 = uint16_t;  // the bits of a bfloat16

constexpr int64_t kLanes = 16;  // 32-bit values of a register

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The first n of 16 lanes.
inline __mmask16 first_lanes(int64_t n) { return n >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << n) - 1); }

// Half to even; a NaN stays one.
inline __m256i to_bf16(__m512 x) {
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

inline __m512 load(const bf16* p, __mmask16 lanes = 0xFFFF) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16));
}

inline __m512 load(const float* p, __mmask16 lanes = 0xFFFF) { return _mm512_maskz_loadu_ps(lanes, p); }

// Stores: masked ones take many cycles on AMD's cores, so whole registers go without.
inline void store(bf16* p, __m512 x, __mmask16 lanes = 0xFFFF) {
  if (lanes == 0xFFFF) _mm256_storeu_si256((__m256i*)p, to_bf16(x));
  else _mm256_mask_storeu_epi16(p, lanes, to_bf16(x));
}

inline void store(float* p, __m512 x, __mmask16 lanes = 0xFFFF) {
  if (lanes == 0xFFFF) _mm512_storeu_ps(p, x);
  else _mm512_mask_storeu_ps(p, lanes, x);
}

inline void store_u8(uint8_t* p, __m128i x, __mmask16 lanes) {
  if (lanes == 0xFFFF) _mm_storeu_si128((__m128i*)p, x);
  else _mm_mask_storeu_epi8(p, lanes, x);
}

// 32 bits of memory in every lane.
inline __m512i broadcast_32(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// _mm512_dpbusd_epi32, for which GCC 12 copies accumulators around until they spill.
inline void add_dots(__m512i& acc, __m512i x, __m512i w) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w)); }

// NaN where either is.
inline __m512 larger(__m512 x, __m512 y) {
  return _mm512_mask_mov_ps(_mm512_max_ps(x, y), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

// 2^x to a relative error of 4e-7 (a polynomial of degree 5 on [-0.5, 0.5]); 0 far below zero.
inline __m512 exp2_ps(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.3333558146e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291076e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504108665e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022650696e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718056e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// 2^x to a relative error of 1e-4, well below the rounding of what becomes bfloat16.
inline __m512 rough_exp2_ps(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(5.5009101892e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4221097957e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9328288779e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// x * Phi(x), the exact GELU, with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline __m512 gelu_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // At most 30, where erf is 1, so that infinity stays what it is; NaN is kept.
  const __m512 z = _mm512_min_ps(_mm512_set1_ps(30.0f), _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118f)));
  const __m512 u = _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one);
  const __m512 guess = _mm512_rcp14_ps(u);
  const __m512 t = _mm512_mul_ps(guess, _mm512_fnmadd_ps(u, guess, _mm512_set1_ps(2.0f)));  // 1 / u, one Newton step
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 tail = exp2_ps(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.4426950409f)));
  const __m512 erf = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), tail, one);
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  return _mm512_fmadd_ps(_mm512_abs_ps(half), erf, half);
}

// The codes of a uniform grid as quantizers/affine.py rounds them: round(x / scale + zero_point), half to even.
struct Grid {
  float scale = 1.0f;
  float zero_point = 0.0f;
  float high = 255.0f;  // the smallest code is 0

  __m128i codes(__m512 x) const { return rounded(_mm512_div_ps(x, _mm512_set1_ps(scale))); }

  // The same but for ties that a product with 1 / scale breaks the other way: for what was just computed in float.
  __m128i near_codes(__m512 x, __m512 inverse) const { return rounded(_mm512_mul_ps(x, inverse)); }

 private:
  __m128i rounded(__m512 scaled) const {
    const __m512 steps = _mm512_add_ps(scaled, _mm512_set1_ps(zero_point));
    const __m512 inside = _mm512_min_ps(_mm512_max_ps(steps, _mm512_setzero_ps()), _mm512_set1_ps(high));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(inside));
  }
};

}  // namespace qsam2
