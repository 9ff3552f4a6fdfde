// The vocabulary of all kernels: registers of 16 values of 32 bits (or 64 bytes), whatever the CPU calls them.
//
// simd_avx512.h, simd_avx2.h, where one is a pair of 256 bits, and simd_neon.h, where one is a quadruple of 128 bits,
// implement it by hand. Highway would take more: packed weights and tiles are made of blocks of 16 channels whatever the
// CPU's vectors are, which its vectors of unknown length are not; the instructions that count (VPDPBUSD, SDOT, SMMLA)
// would still be written here; and the compiler at first use would have to find its headers. Each implementation has:
//
//   Floats, Bits, Lanes          16 float32; 16 int32 or 64 bytes; which lanes, the first of 16
//   kVectors, kMostRows          registers of 16 columns side by side, and rows, of a tile of products, at most
//   kCodesLess                   what add_dots takes from unsigned codes before it multiplies them
//   zeros, all, no_bits, all_ints, all_bytes, first_lanes
//   as_floats, as_bits           reinterpret
//   to_floats, to_ints           convert, half to even
//   keep(lanes, x)               zero elsewhere
//   select(lanes, x, y)          x there, y elsewhere
//   load, store(p, x[, lanes])   of float and bf16; rounds half to even, and a NaN stays one
//   load_bits, store_bits        64 bytes
//   load_bytes(p, n)             the first n of 64 bytes, zero behind
//   store_u8, store_ints(p, x, lanes)     low bytes of 32 bits; the 32 bits
//   broadcast_32(p)              32 bits of memory in every lane
//   gather_32(p, step, lanes)    32 bits at p, p + step, ...
//   + - * / of Floats, & | ^ of Bits, fma(x, y, z) = x y + z, fnma(x, y, z) = z - x y, abs, round, reciprocal
//   min, max                     the second where either is NaN
//   larger                       max, but NaN where either is
//   scale_by_power(x, whole)     x 2^whole; 0 for a whole of -inf, whatever x is
//   complex_product              of 8 pairs each
//   reduce_add, reduce_max, reduce_add_ints, all_below(x, y)
//   add_ints, shift_left_16, shift_right_16<n>, shift_right_32<n>
//   load_table, look_up(table, codes)     16 values by codes below 16
//   where_bits(p, x)             bytes of x of which the bit, of 64 at p, is set, else zero
//   store_tests(p, x, y)         64 bits: where x & y of a byte is not zero
//   add_dots(acc, x, w)          adds to each int32 the sum of its four unsigned codes less kCodesLess, times int8
//   transpose                    16 x 16 values of 32 bits
#pragma once

#if defined(__AVX512VNNI__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#error "The kernels need -mavx512vnni (with f, bw, vl and dq), -mavx2 -mfma or -march=armv8.2-a+dotprod."
#endif

namespace qsam2 {

// 2^x to a relative error of 4e-7 (a polynomial of degree 5 on [-0.5, 0.5]); 0 far below zero.
inline Floats exp2(Floats x) {
  const Floats whole = round(x), f = x - whole;
  Floats p = all(1.3333558146e-3f);
  p = fma(p, f, all(9.6181291076e-3f));
  p = fma(p, f, all(5.5504108665e-2f));
  p = fma(p, f, all(2.4022650696e-1f));
  p = fma(p, f, all(6.9314718056e-1f));
  p = fma(p, f, all(1.0f));
  return scale_by_power(p, whole);
}

// 2^x to a relative error of 1e-4, well below the rounding of what becomes bfloat16.
inline Floats rough_exp2(Floats x) {
  const Floats whole = round(x), f = x - whole;
  Floats p = all(5.5009101892e-2f);
  p = fma(p, f, all(2.4221097957e-1f));
  p = fma(p, f, all(6.9328288779e-1f));
  p = fma(p, f, all(1.0f));
  return scale_by_power(p, whole);
}

// x * Phi(x), the exact GELU, with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline Floats gelu(Floats x) {
  // At most 30, where erf is 1, so that infinity stays what it is; NaN is kept.
  const Floats z = min(all(30.0f), abs(x) * all(0.70710678118f));
  const Floats t = reciprocal(fma(z, all(0.3275911f), all(1.0f)));
  Floats p = all(1.061405429f);
  p = fma(p, t, all(-1.453152027f));
  p = fma(p, t, all(1.421413741f));
  p = fma(p, t, all(-0.284496736f));
  p = fma(p, t, all(0.254829592f));
  const Floats tail = exp2(z * z * all(-1.4426950409f));
  const Floats erf = fnma(p * t, tail, all(1.0f));
  const Floats half = x * all(0.5f);
  return fma(abs(half), erf, half);
}

inline Bits rounded_codes(const Grid& grid, Floats scaled) {
  return to_ints(min(max(scaled + all(grid.zero_point), zeros()), all(grid.high)));
}

// The codes of a grid as quantizers/affine.py rounds them: round(x / scale + zero_point), half to even.
inline Bits codes_of(const Grid& grid, Floats x) { return rounded_codes(grid, x / all(grid.scale)); }

// The same but for ties that a product with 1 / scale breaks the other way: for what was just computed in float.
inline Bits near_codes_of(const Grid& grid, Floats x, Floats inverse) { return rounded_codes(grid, x * inverse); }

}  // namespace qsam2
