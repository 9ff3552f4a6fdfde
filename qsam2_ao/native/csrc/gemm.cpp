// y = act((x - zx) (w - zw)^T * sx * sw + bias) + residual: uint8 activations, weights of 2, 3, 4 or 8 bits.
//
// The weight stays packed in memory. A panel of up to 64 output channels is decoded to int8 in a scratch buffer that
// fits the cache, is multiplied with a block of rows, and is forgotten. A block has kBlock rows, so that decoding
// costs a few percent of the multiplication.
//
// Panel layout: for every 4 inputs (a step) and every 16 output channels one register of 64 codes, channel-major.
//   8 bits: int8 as it is.
//   4 bits: two registers a vector, the first in the low nibbles.
//   2 bits: four registers a vector, register j in bits 2j and 2j + 1.
//   3 bits: the low two bits as for 2 bits, then the third bits of the four registers, 64 each.

#include "gemm.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace qsam2 {
namespace {

constexpr int64_t kBlock = 192;  // a multiple of every tile's rows

struct Panel {
  int64_t first;    // output channel
  int64_t vectors;  // of 16 output channels
};

// As few panels of at most four vectors as possible, of even width.
std::vector<Panel> panels_of(int64_t out) {
  const int64_t vectors = (out + kLanes - 1) / kLanes, count = (vectors + 3) / 4;
  std::vector<Panel> panels;
  for (int64_t i = 0, first = 0; i < count; ++i) {
    const int64_t width = vectors / count + (i < vectors % count);
    panels.push_back({first * kLanes, width});
    first += width;
  }
  return panels;
}

int64_t panel_bytes(int64_t registers, int bits) {
  switch (bits) {
    case 2: return (registers + 3) / 4 * 64;
    case 3: return (registers + 3) / 4 * 96;
    case 4: return (registers + 1) / 2 * 64;
    default: return registers * 64;
  }
}

// Packed codes -> int8 values, through a table of 16.
void decode(const uint8_t* in, int64_t registers, int bits, __m512i table, int8_t* out) {
  if (bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t r = 0; r < registers; r += 2, in += 64, out += 128) {
      const __m512i v = _mm512_loadu_si512(in);
      _mm512_store_si512(out, _mm512_shuffle_epi8(table, _mm512_and_si512(v, low)));
      _mm512_store_si512(out + 64, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low)));
    }
    return;
  }
  const __m512i low = _mm512_set1_epi8(3), third = _mm512_set1_epi8(4);
  for (int64_t r = 0; r < registers; r += 4, out += 256) {
    const __m512i v = _mm512_loadu_si512(in);
    __m512i codes[4] = {_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 2), low),
                        _mm512_and_si512(_mm512_srli_epi16(v, 4), low), _mm512_and_si512(_mm512_srli_epi16(v, 6), low)};
    in += 64;
    if (bits == 3) {
      for (int j = 0; j < 4; ++j) {
        uint64_t bit;
        std::memcpy(&bit, in + 8 * j, sizeof(bit));
        codes[j] = _mm512_or_si512(codes[j], _mm512_maskz_mov_epi8(bit, third));
      }
      in += 32;
    }
    for (int j = 0; j < 4; ++j) _mm512_store_si512(out + 64 * j, _mm512_shuffle_epi8(table, codes[j]));
  }
}

template <Activation act>
__m512 activate(__m512 y) {
  if (act == Activation::kGelu) return gelu_ps(y);
  if (act == Activation::kRelu) return _mm512_max_ps(_mm512_setzero_ps(), y);  // the second if it is NaN
  return y;
}

// What comes after the sums: rows x 16 of them, `stride` apart, of one column of registers.
template <Activation act>
void finish(const GemmArgs& g, const int32_t* sums, int64_t stride, int64_t rows, int64_t row, int64_t column) {
  const __mmask16 lanes = first_lanes(g.n - column);
  const __m512 alpha = _mm512_maskz_loadu_ps(lanes, g.alpha + column);
  const __m512 beta = _mm512_maskz_loadu_ps(lanes, g.beta + column);
  const auto each = [&](auto residual, auto write) {
    for (int64_t i = 0, at = row * g.n + column; i < rows; ++i, at += g.n) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * stride));
      write(at, residual(activate<act>(_mm512_fmadd_ps(sum, alpha, beta)), at));
    }
  };
  const auto to = [&](auto residual) {
    if (g.out_bf16) {
      each(residual, [&](int64_t at, __m512 y) { store(g.out_bf16 + at, y, lanes); });
    } else if (g.out_u8) {
      const __m512 inverse = _mm512_set1_ps(1.0f / g.grid.scale);
      each(residual, [&](int64_t at, __m512 y) {
        store_u8(g.out_u8 + at, g.grid.near_codes(y, inverse), lanes);
      });
    } else {
      each(residual, [&](int64_t at, __m512 y) { store(g.out_f32 + at, y, lanes); });
    }
  };
  if (g.residual_bf16)
    to([&](__m512 y, int64_t at) { return _mm512_add_ps(y, load(g.residual_bf16 + at, lanes)); });
  else if (g.residual_f32)
    to([&](__m512 y, int64_t at) { return _mm512_add_ps(y, load(g.residual_f32 + at, lanes)); });
  else
    to([](__m512 y, int64_t) { return y; });
}

// Fetch what finish() will touch while the products are summed.
template <int Rows>
void prefetch(const GemmArgs& g, int64_t row, int64_t column, int64_t vectors) {
  const int64_t at = row * g.n + column, n = vectors * kLanes;
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t c = 0; c < n; c += 32) {
      if (g.residual_bf16) __builtin_prefetch(g.residual_bf16 + at + i * g.n + c, 0);
      if (g.out_bf16) __builtin_prefetch(g.out_bf16 + at + i * g.n + c, 1);
    }
}

template <int Rows, int Vectors, Activation act>
void tile(const GemmArgs& g, const int8_t* panel, int64_t row, int64_t column) {
  __m512i acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) acc[i][j] = _mm512_setzero_si512();
  prefetch<Rows>(g, row, column, Vectors);
  const uint8_t* x = g.x + row * g.k;
  for (int64_t step = 0; step < g.k / 4; ++step, x += 4, panel += 64 * Vectors) {
    __m512i w[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) w[j] = _mm512_loadu_si512(panel + 64 * j);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      const __m512i a = broadcast_32(x + i * g.k);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) add_dots(acc[i][j], a, w[j]);
    }
  }
  // Through memory, since a loop over registers would keep all of them there from the start.
  alignas(64) int32_t sums[Rows][Vectors][kLanes];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) _mm512_store_si512(sums[i][j], acc[i][j]);
  for (int j = 0; j < Vectors; ++j)
    finish<act>(g, sums[0][j], Vectors * kLanes, Rows, row, column + j * kLanes);
}

template <int Rows, int Vectors, Activation act>
void rest(const GemmArgs& g, const int8_t* panel, int64_t row, int64_t count, int64_t column) {
  if constexpr (Rows > 0) {
    if (count == Rows) return tile<Rows, Vectors, act>(g, panel, row, column);
    rest<Rows - 1, Vectors, act>(g, panel, row, count, column);
  }
}

// As many rows as keep 24 accumulators busy.
template <int Rows, int Vectors, Activation act>
void rows(const GemmArgs& g, const int8_t* panel, int64_t first, int64_t last, int64_t column) {
  for (; first + Rows <= last; first += Rows) tile<Rows, Vectors, act>(g, panel, first, column);
  rest<Rows - 1, Vectors, act>(g, panel, first, last - first, column);
}

template <Activation act>
void block(const GemmArgs& g, const int8_t* panel, const Panel& at, int64_t first, int64_t last) {
  switch (at.vectors) {
    case 4: return rows<6, 4, act>(g, panel, first, last, at.first);
    case 3: return rows<8, 3, act>(g, panel, first, last, at.first);
    case 2: return rows<12, 2, act>(g, panel, first, last, at.first);
    default: return rows<12, 1, act>(g, panel, first, last, at.first);
  }
}

}  // namespace

int64_t packed_bytes(int64_t n, int64_t k, int bits) {
  int64_t bytes = 0;
  for (const Panel& p : panels_of(n)) bytes += panel_bytes(k / 4 * p.vectors, bits);
  return bytes;
}

void pack(const uint8_t* codes, int64_t n, int64_t k, int bits, uint8_t* out, int32_t* sums) {
  const std::vector<Panel> panels = panels_of(n);
  std::vector<uint8_t*> at;
  for (const Panel& p : panels) {
    at.push_back(out);
    out += panel_bytes(k / 4 * p.vectors, bits);
  }
  const __m512i ones = _mm512_set1_epi8(1), low = _mm512_set1_epi8(3), third = _mm512_set1_epi8(4);
  const __m512i sign = _mm512_set1_epi8(-128);
  const __m512i channels = _mm512_mullo_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32((int)k));
  parallel(panels.size(), worth_a_thread(64.0 * 32 * k), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Panel& p = panels[i];
      for (int64_t v = 0; v < p.vectors; ++v) {
        const int64_t channel = p.first + v * kLanes;
        const __mmask16 lanes = first_lanes(n - channel);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t step = 0; step < k / 4; ++step) {
          const uint8_t* from = codes + channel * k + 4 * step;
          const __m512i c = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, channels, from, 1);
          add_dots(sum, c, ones);
          const int64_t r = step * p.vectors + v;
          const auto add = [&](uint8_t* to, __m512i x) {
            _mm512_storeu_si512(to, _mm512_or_si512(_mm512_loadu_si512(to), x));
          };
          if (bits == 8) {
            _mm512_storeu_si512(at[i] + 64 * r, _mm512_xor_si512(c, sign));  // code - 128 as int8
          } else if (bits == 4) {
            add(at[i] + r / 2 * 64, _mm512_slli_epi16(c, 4 * (r % 2)));
          } else {
            uint8_t* group = at[i] + r / 4 * (bits == 3 ? 96 : 64);
            add(group, _mm512_slli_epi16(_mm512_and_si512(c, low), 2 * (r % 4)));
            const uint64_t bit = _mm512_test_epi8_mask(c, third);
            if (bits == 3) std::memcpy(group + 64 + 8 * (r % 4), &bit, sizeof(bit));
          }
        }
        _mm512_mask_storeu_epi32(sums + channel, lanes, sum);
      }
    }
  });
}

void gemm(const GemmArgs& g) {
  const std::vector<Panel> panels = panels_of(g.n);
  std::vector<const uint8_t*> packed;
  const uint8_t* at = g.weight;
  for (const Panel& p : panels) {
    packed.push_back(at);
    at += panel_bytes(g.k / 4 * p.vectors, g.bits);
  }
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)g.table));
  const int64_t blocks = (g.m + kBlock - 1) / kBlock, count = panels.size();
  // With few rows, threads share the panels instead of the rows.
  const int64_t split = std::min<int64_t>(count, blocks >= 2 * threads() ? 1 : 2 * threads());
  const double cost = double(g.m) * g.n * g.k / (blocks * split);
  parallel_with_scratch(blocks * split, worth_a_thread(cost), [&](const auto& each) {
    std::vector<int8_t> buffer(g.bits == 8 ? 0 : round_up(g.k / 4, 4) * 64 * 4 + 64);
    auto* scratch = (int8_t*)round_up((int64_t)buffer.data(), 64);
    each([&](int64_t task) {
      const int64_t first = task / split * kBlock, last = std::min(first + kBlock, g.m);
      for (int64_t p = task % split; p < count; p += split) {
        const int8_t* panel = (const int8_t*)packed[p];
        if (g.bits != 8) {
          decode(packed[p], g.k / 4 * panels[p].vectors, g.bits, table, scratch);
          panel = scratch;
        }
        switch (g.activation) {
          case Activation::kNone: block<Activation::kNone>(g, panel, panels[p], first, last); break;
          case Activation::kGelu: block<Activation::kGelu>(g, panel, panels[p], first, last); break;
          case Activation::kRelu: block<Activation::kRelu>(g, panel, panels[p], first, last); break;
        }
      }
    });
  });
}

}  // namespace qsam2
