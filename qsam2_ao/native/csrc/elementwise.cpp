#include "elementwise.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace qsam2 {
namespace {

constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread

}  // namespace

void quantize(const bf16* x_bf16, const float* x_f32, int64_t n, const Grid& grid, uint8_t* out) {
  parallel((n + kLanes - 1) / kLanes, kGrain / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < std::min(n, end * kLanes); i += kLanes) {
      const Lanes lanes = first_lanes(n - i);
      const Floats x = x_bf16 ? load(x_bf16 + i, lanes) : load(x_f32 + i, lanes);
      store_u8(out + i, codes_of(grid, x), lanes);
    }
  });
}

namespace {

// Rows at once, whose chains of dependent sums overlap.
template <int Rows>
void normalize(const LayerNormArgs& a, int64_t row, Floats inverse) {
  const auto input = [&](int r, int64_t c, Lanes lanes) {
    const int64_t at = (row + r) * a.n + c;
    return a.x_bf16 ? load(a.x_bf16 + at, lanes) : load(a.x_f32 + at, lanes);
  };
  Floats sum[Rows], mean[Rows], rstd[Rows];
  for (int r = 0; r < Rows; ++r) sum[r] = zeros();
  for (int64_t c = 0; c < a.n; c += kLanes)
    for (int r = 0; r < Rows; ++r) sum[r] = sum[r] + input(r, c, first_lanes(a.n - c));
  for (int r = 0; r < Rows; ++r) {
    mean[r] = all(reduce_add(sum[r]) / a.n);
    sum[r] = zeros();
  }
  for (int64_t c = 0; c < a.n; c += kLanes)
    for (int r = 0; r < Rows; ++r) {
      const Lanes lanes = first_lanes(a.n - c);
      const Floats x = keep(lanes, input(r, c, lanes) - mean[r]);
      sum[r] = fma(x, x, sum[r]);
    }
  for (int r = 0; r < Rows; ++r)
    rstd[r] = all(1.0f / std::sqrt(reduce_add(sum[r]) / a.n + a.eps));
  for (int64_t c = 0; c < a.n; c += kLanes) {
    const Lanes lanes = first_lanes(a.n - c);
    const Floats weight = load(a.weight + c, lanes), bias = load(a.bias + c, lanes);
    for (int r = 0; r < Rows; ++r) {
      const Floats x = (input(r, c, lanes) - mean[r]) * rstd[r];
      const Floats y = fma(x, weight, bias);
      if (a.out_bf16) store(a.out_bf16 + (row + r) * a.n + c, y, lanes);
      else store_u8(a.out_u8 + (row + r) * a.n + c, near_codes_of(a.grid, y, inverse), lanes);
    }
  }
}

}  // namespace

void layer_norm(const LayerNormArgs& a) {
  const Floats inverse = all(1.0f / a.grid.scale);
  parallel(a.rows, std::max<int64_t>(1, kGrain / a.n), [&](int64_t begin, int64_t end) {
    for (; begin + 4 <= end; begin += 4) normalize<4>(a, begin, inverse);
    for (; begin < end; ++begin) normalize<1>(a, begin, inverse);
  });
}

}  // namespace qsam2
