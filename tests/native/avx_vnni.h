// AVX-VNNI for a CPU that has AVX2 alone, to be included before everything else.
#pragma once

#include <immintrin.h>

#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd

static inline __m256i emulated_dpbusd(__m256i sum, __m256i codes, __m256i weights) {
  int sums[8];
  unsigned char x[32];
  signed char w[32];
  _mm256_storeu_si256((__m256i*)sums, sum);
  _mm256_storeu_si256((__m256i*)x, codes);
  _mm256_storeu_si256((__m256i*)w, weights);
  for (int i = 0; i < 32; ++i) sums[i / 4] += x[i] * w[i];
  return _mm256_loadu_si256((const __m256i*)sums);
}
