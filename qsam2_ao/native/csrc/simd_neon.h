// The vocabulary of simd.h on Arm's NEON, with the dot products of Armv8.2: four registers at once.
#pragma once

#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common.h"
#include "simd_counted.h"

namespace qsam2 {

template <typename T>
struct Quad {
  T a, b, c, d;
};
using Floats = Quad<float32x4_t>;
using Bits = Quad<int32x4_t>;

constexpr int kVectors = 1;
constexpr int kMostRows = 6;
constexpr int32_t kCodesLess = 128;  // SDOT and SMMLA multiply int8 by int8

// f of each quarter.
template <typename F, typename... X>
[[gnu::always_inline]] inline auto quarters(const F& f, const X&... x) {
  return Quad<decltype(f(x.a...))>{f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
}

inline Floats all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Bits all_ints(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline Bits all_bytes(int x) { return all_ints((x & 0xFF) * 0x01010101); }
inline Floats zeros() { return all(0.0f); }
inline Bits no_bits() { return all_ints(0); }
inline Floats as_floats(Bits x) { return quarters([](auto q) { return vreinterpretq_f32_s32(q); }, x); }
inline Bits as_bits(Floats x) { return quarters([](auto q) { return vreinterpretq_s32_f32(q); }, x); }
inline Floats to_floats(Bits x) { return quarters([](auto q) { return vcvtq_f32_s32(q); }, x); }
inline Bits to_ints(Floats x) { return quarters([](auto q) { return vcvtnq_s32_f32(q); }, x); }

inline Floats operator+(Floats x, Floats y) { return quarters([](auto p, auto q) { return vaddq_f32(p, q); }, x, y); }
inline Floats operator-(Floats x, Floats y) { return quarters([](auto p, auto q) { return vsubq_f32(p, q); }, x, y); }
inline Floats operator*(Floats x, Floats y) { return quarters([](auto p, auto q) { return vmulq_f32(p, q); }, x, y); }
inline Floats operator/(Floats x, Floats y) { return quarters([](auto p, auto q) { return vdivq_f32(p, q); }, x, y); }
inline Bits operator&(Bits x, Bits y) { return quarters([](auto p, auto q) { return vandq_s32(p, q); }, x, y); }
inline Bits operator|(Bits x, Bits y) { return quarters([](auto p, auto q) { return vorrq_s32(p, q); }, x, y); }
inline Bits operator^(Bits x, Bits y) { return quarters([](auto p, auto q) { return veorq_s32(p, q); }, x, y); }

inline Floats select(Lanes lanes, Floats x, Floats y) {
  static constexpr int32_t kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int32x4_t n = vdupq_n_s32((int32_t)lanes.n);
  const auto part = [&](int i, auto p, auto q) { return vbslq_f32(vcltq_s32(vld1q_s32(kLane + 4 * i), n), p, q); };
  return {part(0, x.a, y.a), part(1, x.b, y.b), part(2, x.c, y.c), part(3, x.d, y.d)};
}
inline Floats keep(Lanes lanes, Floats x) { return lanes.n == kLanes ? x : select(lanes, x, zeros()); }

// Half to even; a NaN stays one.
inline uint16x4_t to_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x), high = vshrq_n_u32(bits, 16);
  const uint32x4_t half = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7FFF));
  const uint32x4_t nan = vorrq_u32(high, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(x, x), vshrq_n_u32(vaddq_u32(bits, half), 16), nan));
}

inline Bits load_bits(const void* p) {
  const auto* from = (const int32_t*)p;
  return {vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)};
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
  const uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8);
  const auto wide = [](uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); };
  return {wide(vget_low_u16(low)), wide(vget_high_u16(low)), wide(vget_low_u16(high)), wide(vget_high_u16(high))};
}

inline void store_bits(void* p, Bits x) {
  auto* to = (int32_t*)p;
  vst1q_s32(to, x.a);
  vst1q_s32(to + 4, x.b);
  vst1q_s32(to + 8, x.c);
  vst1q_s32(to + 12, x.d);
}
inline void store_ints(int32_t* p, Bits x, Lanes lanes) {
  store_lanes(p, lanes, [&](int32_t* to) { store_bits(to, x); });
}
inline void store(float* p, Floats x, Lanes lanes = {kLanes}) {
  store_lanes(p, lanes, [&](float* to) { store_bits(to, as_bits(x)); });
}
inline void store(bf16* p, Floats x, Lanes lanes = {kLanes}) {
  store_lanes(p, lanes, [&](bf16* to) {
    vst1q_u16(to, vcombine_u16(to_bf16(x.a), to_bf16(x.b)));
    vst1q_u16(to + 8, vcombine_u16(to_bf16(x.c), to_bf16(x.d)));
  });
}
inline void store_u8(uint8_t* p, Bits x, Lanes lanes) {
  store_lanes(p, lanes, [&](uint8_t* to) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_u8(to, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high))));
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
  return quarters([](auto p, auto q, auto r) { return vfmaq_f32(r, p, q); }, x, y, z);
}
inline Floats fnma(Floats x, Floats y, Floats z) {
  return quarters([](auto p, auto q, auto r) { return vfmsq_f32(r, p, q); }, x, y, z);
}
inline Floats min(Floats x, Floats y) {
  return quarters([](auto p, auto q) { return vbslq_f32(vcltq_f32(p, q), p, q); }, x, y);
}
inline Floats max(Floats x, Floats y) {
  return quarters([](auto p, auto q) { return vbslq_f32(vcgtq_f32(p, q), p, q); }, x, y);
}
inline Floats larger(Floats x, Floats y) { return quarters([](auto p, auto q) { return vmaxq_f32(p, q); }, x, y); }
inline Floats abs(Floats x) { return quarters([](auto q) { return vabsq_f32(q); }, x); }
inline Floats round(Floats x) { return quarters([](auto q) { return vrndnq_f32(q); }, x); }
inline Floats reciprocal(Floats x) { return all(1.0f) / x; }
inline Floats scale_by_power(Floats x, Floats whole) {
  const auto power = [](int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); };
  return quarters(
      [&](float32x4_t q, float32x4_t w) {
        // In two steps, whose exponents float32 has, also where the result is subnormal or infinite.
        const int32x4_t n = vcvtq_s32_f32(vmaxq_f32(vminq_f32(w, vdupq_n_f32(252.0f)), vdupq_n_f32(-252.0f)));
        const int32x4_t half = vshrq_n_s32(n, 1);
        const float32x4_t scaled = vmulq_f32(vmulq_f32(q, power(half)), power(vsubq_s32(n, half)));
        const uint32x4_t endless = vceqq_f32(vabsq_f32(w), vdupq_n_f32(std::numeric_limits<float>::infinity()));
        return vbslq_f32(endless, vmaxq_f32(w, vdupq_n_f32(0.0f)), scaled);
      },
      x, whole);
}
inline Floats complex_product(Floats x, Floats y) {
  const float32x4_t sign = {-1.0f, 1.0f, -1.0f, 1.0f};
  return quarters(
      [&](float32x4_t p, float32x4_t q) {
        const float32x4_t across = vmulq_f32(vmulq_f32(vrev64q_f32(p), vtrn2q_f32(q, q)), sign);
        return vfmaq_f32(across, p, vtrn1q_f32(q, q));
      },
      x, y);
}

inline float reduce_add(Floats x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d))); }
inline float reduce_max(Floats x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
inline int32_t reduce_add_ints(Bits x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
inline bool all_below(Floats x, Floats y) {
  const auto below = quarters([](auto p, auto q) { return vcltq_f32(p, q); }, x, y);
  return vminvq_u32(vandq_u32(vandq_u32(below.a, below.b), vandq_u32(below.c, below.d))) != 0;
}

inline Bits add_ints(Bits x, Bits y) { return quarters([](auto p, auto q) { return vaddq_s32(p, q); }, x, y); }
inline Bits shift_left_16(Bits x, int64_t n) {
  const int16x8_t by = vdupq_n_s16((int16_t)n);
  return quarters([&](auto q) { return vreinterpretq_s32_s16(vshlq_s16(vreinterpretq_s16_s32(q), by)); }, x);
}
template <int N>
inline Bits shift_right_16(Bits x) {
  return quarters([](auto q) { return vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(q), N)); }, x);
}
template <int N>
inline Bits shift_right_32(Bits x) {
  return quarters([](auto q) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(q), N)); }, x);
}

inline Bits load_table(const int8_t* p) {
  const int32x4_t table = vreinterpretq_s32_s8(vld1q_s8(p));
  return {table, table, table, table};
}
inline Bits look_up(Bits table, Bits codes) {
  return quarters(
      [](auto t, auto q) {
        return vreinterpretq_s32_s8(vqtbl1q_s8(vreinterpretq_s8_s32(t), vreinterpretq_u8_s32(q)));
      },
      table, codes);
}
inline Bits where_bits(const void* p, Bits x) {
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const auto part = [&](int i, int32x4_t q) {
    const auto* from = (const uint8_t*)p + 2 * i;
    const uint8x16_t set = vtstq_u8(vcombine_u8(vdup_n_u8(from[0]), vdup_n_u8(from[1])), bit);
    return vandq_s32(q, vreinterpretq_s32_u8(set));
  };
  return {part(0, x.a), part(1, x.b), part(2, x.c), part(3, x.d)};
}
inline void store_tests(void* p, Bits x, Bits y) {
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  auto* to = (uint8_t*)p;
  const auto part = [&](int i, int32x4_t q, int32x4_t r) {
    const uint8x16_t set = vandq_u8(vtstq_u8(vreinterpretq_u8_s32(q), vreinterpretq_u8_s32(r)), bit);
    to[2 * i] = vaddv_u8(vget_low_u8(set));
    to[2 * i + 1] = vaddv_u8(vget_high_u8(set));
  };
  part(0, x.a, y.a);
  part(1, x.b, y.b);
  part(2, x.c, y.c);
  part(3, x.d, y.d);
}

inline void add_dots(Bits& acc, Bits x, Bits w) {
  const auto add = [](int32x4_t sum, int32x4_t codes, int32x4_t weights) {
    const uint8x16_t less = veorq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(kCodesLess));
    return vdotq_s32(sum, vreinterpretq_s8_u8(less), vreinterpretq_s8_s32(weights));
  };
  acc = quarters(add, acc, x, w);
}

inline void transpose(Bits (&r)[16]) {
  alignas(16) int32_t values[16][16], turned[16][16];
  for (int i = 0; i < 16; ++i) store_bits(values[i], r[i]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 16; j += 4) {  // 4 x 4
      const auto row = [&](int k) { return vld1q_s32(values[i + k] + j); };
      const auto even = [](int32x4_t x, int32x4_t y) { return vreinterpretq_s64_s32(vtrn1q_s32(x, y)); };
      const auto odd = [](int32x4_t x, int32x4_t y) { return vreinterpretq_s64_s32(vtrn2q_s32(x, y)); };
      const int32x4_t r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
      const int64x2_t even01 = even(r0, r1), even23 = even(r2, r3), odd01 = odd(r0, r1), odd23 = odd(r2, r3);
      vst1q_s64((int64_t*)(turned[j] + i), vtrn1q_s64(even01, even23));
      vst1q_s64((int64_t*)(turned[j + 1] + i), vtrn1q_s64(odd01, odd23));
      vst1q_s64((int64_t*)(turned[j + 2] + i), vtrn2q_s64(even01, even23));
      vst1q_s64((int64_t*)(turned[j + 3] + i), vtrn2q_s64(odd01, odd23));
    }
  for (int i = 0; i < 16; ++i) r[i] = load_bits(turned[i]);
}

}  // namespace qsam2
