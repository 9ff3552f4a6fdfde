#include "upscale.h"

#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace qsam2 {
namespace {

template <typename In, typename Out>
void place(const In* x, Out* out, const PixelsArgs& a) {
  parallel(a.b * a.h, worth_a_thread(16.0 * a.w * a.k * a.k * a.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t y = 0; y < a.k; ++y)
        for (int64_t column = 0; column < a.w; ++column) {
          const In* from = x + ((row * a.w + column) * a.k + y) * a.k * a.c;
          Out* to = out + ((row * a.k + y) * a.w + column) * a.k * a.c;
          for (int64_t i = 0; i < a.k; ++i)
            for (int64_t c = 0; c < a.c; c += kLanes) {
              const Lanes lanes = first_lanes(a.c - c);
              store(to + i * a.c + c, load(from + i * a.c + c, lanes) + load(a.bias + c, lanes), lanes);
            }
        }
  });
}

constexpr int64_t kPixels = 256;  // of a task: whole lines of every plane

template <typename In, typename Out>
void activate(const In* x, Out* out, const GeluPlanesArgs& a) {
  const int64_t blocks = (a.n + kPixels - 1) / kPixels;
  parallel(a.b * blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks * a.n * a.c, first = task % blocks * kPixels;
      const int64_t last = std::min(a.n, first + kPixels);
      for (int64_t c = 0; c < a.c; c += a.planes ? 1 : kLanes)
        for (int64_t p = first; p < last; p += kLanes) {
          const Lanes lanes = first_lanes(last - p);
          if (a.planes) {
            const int64_t at = image + c * a.n + p;
            store(out + at, gelu(load(x + at, lanes)), lanes);
            continue;
          }
          const Lanes channels = first_lanes(a.c - c);
          Bits tile[16];
          for (int i = 0; i < 16; ++i)
            tile[i] = p + i < last ? as_bits(gelu(load(x + image + (p + i) * a.c + c, channels))) : no_bits();
          transpose(tile);
          for (int i = 0; i < std::min<int64_t>(16, a.c - c); ++i)
            store(out + image + (c + i) * a.n + p, as_floats(tile[i]), lanes);
        }
    }
  });
}

// Calls body(input, output) with the pointers that are set.
template <typename Args, typename Body>
void typed(const Args& a, Body body) {
  if (a.x_bf16 && a.out_bf16) body(a.x_bf16, a.out_bf16);
  else if (a.x_bf16) body(a.x_bf16, a.out_f32);
  else if (a.out_bf16) body(a.x_f32, a.out_bf16);
  else body(a.x_f32, a.out_f32);
}

}  // namespace

void pixels(const PixelsArgs& a) {
  typed(a, [&](const auto* x, auto* out) { place(x, out, a); });
}

void gelu_planes(const GeluPlanesArgs& a) {
  typed(a, [&](const auto* x, auto* out) { activate(x, out, a); });
}

}  // namespace qsam2
