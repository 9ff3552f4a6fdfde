#include "elementwise.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

namespace qsam2 {
namespace {

constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread

}  // namespace

void quantize(const bf16* x_bf16, const float* x_f32, int64_t n, const Grid& grid, uint8_t* out) {
  at::parallel_for(0, (n + kLanes - 1) / kLanes, kGrain / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < std::min(n, end * kLanes); i += kLanes) {
      const __mmask16 lanes = first_lanes(n - i);
      const __m512 x = x_bf16 ? load_bf16(x_bf16 + i, lanes) : _mm512_maskz_loadu_ps(lanes, x_f32 + i);
      _mm_mask_storeu_epi8(out + i, lanes, grid.codes(x));
    }
  });
}

void layer_norm(const LayerNormArgs& a) {
  at::parallel_for(0, a.rows, std::max<int64_t>(1, kGrain / a.n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto load = [&](int64_t c) {
        const __mmask16 lanes = first_lanes(a.n - c);
        return a.x_bf16 ? load_bf16(a.x_bf16 + row * a.n + c, lanes)
                        : _mm512_maskz_loadu_ps(lanes, a.x_f32 + row * a.n + c);
      };
      __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
      for (int64_t c = 0; c < a.n; c += kLanes) sum = _mm512_add_ps(sum, load(c));
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / a.n);
      for (int64_t c = 0; c < a.n; c += kLanes) {
        const __m512 x = _mm512_maskz_sub_ps(first_lanes(a.n - c), load(c), mean);
        squares = _mm512_fmadd_ps(x, x, squares);
      }
      const __m512 rstd = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / a.n + a.eps));
      for (int64_t c = 0; c < a.n; c += kLanes) {
        const __mmask16 lanes = first_lanes(a.n - c);
        const __m512 x = _mm512_mul_ps(_mm512_sub_ps(load(c), mean), rstd);
        const __m512 y = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(lanes, a.weight + c),
                                         _mm512_maskz_loadu_ps(lanes, a.bias + c));
        if (a.out_bf16) store_bf16(a.out_bf16 + row * a.n + c, y, lanes);
        if (a.out_u8) _mm_mask_storeu_epi8(a.out_u8 + row * a.n + c, lanes, a.grid.codes(y));
      }
    }
  });
}

}  // namespace qsam2
