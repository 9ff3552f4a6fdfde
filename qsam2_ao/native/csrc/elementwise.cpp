#include "elementwise.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace qsam2 {
namespace {

constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread

}  // namespace

void quantize(const bf16* x_bf16, const float* x_f32, int64_t n, const Grid& grid, uint8_t* out) {
  parallel((n + kLanes - 1) / kLanes, kGrain / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < std::min(n, end * kLanes); i += kLanes) {
      const __mmask16 lanes = first_lanes(n - i);
      const __m512 x = x_bf16 ? load(x_bf16 + i, lanes) : load(x_f32 + i, lanes);
      store_u8(out + i, grid.codes(x), lanes);
    }
  });
}

namespace {

// Rows at once, whose chains of dependent sums overlap.
template <int Rows>
void normalize(const LayerNormArgs& a, int64_t row, __m512 inverse) {
  const auto input = [&](int r, int64_t c, __mmask16 lanes) {
    const int64_t at = (row + r) * a.n + c;
    return a.x_bf16 ? load(a.x_bf16 + at, lanes) : load(a.x_f32 + at, lanes);
  };
  __m512 sum[Rows], mean[Rows], rstd[Rows];
  for (int r = 0; r < Rows; ++r) sum[r] = _mm512_setzero_ps();
  for (int64_t c = 0; c < a.n; c += kLanes)
    for (int r = 0; r < Rows; ++r) sum[r] = _mm512_add_ps(sum[r], input(r, c, first_lanes(a.n - c)));
  for (int r = 0; r < Rows; ++r) {
    mean[r] = _mm512_set1_ps(_mm512_reduce_add_ps(sum[r]) / a.n);
    sum[r] = _mm512_setzero_ps();
  }
  for (int64_t c = 0; c < a.n; c += kLanes)
    for (int r = 0; r < Rows; ++r) {
      const __mmask16 lanes = first_lanes(a.n - c);
      const __m512 x = _mm512_maskz_sub_ps(lanes, input(r, c, lanes), mean[r]);
      sum[r] = _mm512_fmadd_ps(x, x, sum[r]);
    }
  for (int r = 0; r < Rows; ++r)
    rstd[r] = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum[r]) / a.n + a.eps));
  for (int64_t c = 0; c < a.n; c += kLanes) {
    const __mmask16 lanes = first_lanes(a.n - c);
    const __m512 weight = _mm512_maskz_loadu_ps(lanes, a.weight + c), bias = _mm512_maskz_loadu_ps(lanes, a.bias + c);
    for (int r = 0; r < Rows; ++r) {
      const __m512 x = _mm512_mul_ps(_mm512_sub_ps(input(r, c, lanes), mean[r]), rstd[r]);
      const __m512 y = _mm512_fmadd_ps(x, weight, bias);
      if (a.out_bf16) store(a.out_bf16 + (row + r) * a.n + c, y, lanes);
      else store_u8(a.out_u8 + (row + r) * a.n + c, a.grid.near_codes(y, inverse), lanes);
    }
  }
}

}  // namespace

void layer_norm(const LayerNormArgs& a) {
  const __m512 inverse = _mm512_set1_ps(1.0f / a.grid.scale);
  parallel(a.rows, std::max<int64_t>(1, kGrain / a.n), [&](int64_t begin, int64_t end) {
    for (; begin + 4 <= end; begin += 4) normalize<4>(a, begin, inverse);
    for (; begin < end; ++begin) normalize<1>(a, begin, inverse);
  });
}

}  // namespace qsam2
