// Each pair of channels of a token is a complex number, which is multiplied by one of length 1 that its place has.
// Memories of several frames, one behind the other, have the same places.

#include "rotary.h"

#include "parallel.h"
#include "simd.h"

namespace qsam2 {
namespace {

template <typename T>
void rotate_row(const T* x, const float* frequencies, int64_t d, bf16* out) {
  for (int64_t c = 0; c < d; c += kLanes) {
    const Lanes lanes = first_lanes(d - c);
    Floats y = load(x + c, lanes);
    if (frequencies) y = complex_product(y, load(frequencies + c, lanes));
    store(out + c, y, lanes);
  }
}

template <typename T>
void rotate_rows(const RotateArgs& a, const T* x) {
  parallel(a.batches * a.heads * a.tokens, worth_a_thread(16.0 * a.d), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t i = row / a.tokens, t = row % a.tokens;
      const T* from = x + i / a.heads * a.batch + i % a.heads * a.head + t * a.token;
      const float* frequencies = t < a.rotated ? a.frequencies + t % a.period * a.d : nullptr;
      rotate_row(from, frequencies, a.d, a.out + row * a.d);
    }
  });
}

}  // namespace

void rotate(const RotateArgs& a) {
  if (a.x_bf16) rotate_rows(a, a.x_bf16);
  else rotate_rows(a, a.x_f32);
}

}  // namespace qsam2
