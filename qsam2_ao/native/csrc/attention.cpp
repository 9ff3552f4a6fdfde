// softmax(scale * q k^T) v with the scores of a few rows and keys at a time, so that they never leave the cache.
//
// Keys and values are rearranged once per head into what VDPBF16PS multiplies: panels of up to four registers, each of
// 16 columns and two values along the sum. Keys: columns are keys, sums run over channels; values: columns are channels,
// sums run over keys. Sums are in float32, probabilities in bfloat16; the softmax is computed online (Milakov and
// Gimelshein 2018), with exp2 and the scale folded in.

#include "attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include <limits>
#include <vector>

namespace qsam2 {
namespace {

constexpr int64_t kQueries = 96;  // rows of scores at a time
constexpr int64_t kKeys = 256;    // columns of scores at a time, a multiple of 64
constexpr int kRows = 6;          // rows of a tile: 6 x 4 accumulators

template <typename T>
T* aligned(std::vector<T>& buffer, int64_t n) {
  buffer.resize(n + 64 / sizeof(T));
  return (T*)round_up((int64_t)buffer.data(), 64);
}

struct Sizes {
  int64_t d, pairs, columns;  // channels; of queries and keys in pairs; of values, padded to registers
  explicit Sizes(int64_t d) : d(d), pairs(round_up(d, 2) / 2), columns(round_up(d, kLanes)) {}
  int64_t keys_size(int64_t keys) const { return round_up(keys, kLanes) * pairs * 2; }
  int64_t values_size(int64_t keys) const { return round_up(keys, kLanes) * columns; }
};

void transpose(__m512i (&r)[16]) {  // 16 x 16 values of 32 bits
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Rows row(0) ... row(n - 1), each of d values, n padded with zeros: columns [panel][pair][vector][16 keys][2].
template <typename Row>
void pack_keys(Row row, int64_t n, const Sizes& s, bf16* out) {
  const int64_t vectors = (n + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t width = std::min<int64_t>(4, vectors - v / 4 * 4);
    bf16* panel = out + v / 4 * 4 * kLanes * s.pairs * 2;
    for (int64_t p = 0; p < s.pairs; p += kLanes) {
      const int64_t left = s.d - 2 * p;
      const __mmask32 lanes = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t key = v * kLanes + i;
        r[i] = key < n ? _mm512_maskz_loadu_epi16(lanes, row(key) + 2 * p) : _mm512_setzero_si512();
      }
      transpose(r);
      for (int64_t i = 0; i < std::min(kLanes, s.pairs - p); ++i)
        _mm512_storeu_si512(panel + ((p + i) * width + v % 4) * 32, r[i]);
    }
  }
}

// Columns [panel][pair of keys][vector][16 channels][2]; keys padded with zeros to a multiple of 16.
template <typename Row>
void pack_values(Row row, int64_t n, const Sizes& s, bf16* out) {
  const int64_t rows = round_up(n, kLanes), vectors = s.columns / kLanes;
  for (int64_t key = 0; key < rows; key += 2) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t width = std::min<int64_t>(4, vectors - v / 4 * 4);
      const __mmask16 lanes = first_lanes(s.d - v * kLanes);
      const auto half = [&](int64_t i) {
        return i < n ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, row(i) + v * kLanes))
                     : _mm512_setzero_si512();
      };
      const __m512i pair = _mm512_or_si512(half(key), _mm512_slli_epi32(half(key + 1), 16));
      _mm512_storeu_si512(out + v / 4 * 4 * kLanes * rows + (key / 2 * width + v % 4) * 32, pair);
    }
  }
}

template <int Rows, int Vectors, bool Accumulate>
void tile(const bf16* a, int64_t lda, const bf16* b, int64_t pairs, float* c, int64_t ldc) {
  __m512 acc[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j)
      acc[i][j] = Accumulate ? _mm512_loadu_ps(c + i * ldc + j * kLanes) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p, a += 2, b += 32 * Vectors) {
    __m512i w[Vectors];
    for (int j = 0; j < Vectors; ++j) w[j] = _mm512_loadu_si512(b + 32 * j);
    for (int i = 0; i < Rows; ++i) {
      const __m512bh x = (__m512bh)broadcast_32(a + i * lda);
      for (int j = 0; j < Vectors; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, (__m512bh)w[j]);
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) _mm512_storeu_ps(c + i * ldc + j * kLanes, acc[i][j]);
}

template <int Rows, int Vectors, bool Accumulate>
void rest(const bf16* a, int64_t lda, const bf16* b, int64_t pairs, float* c, int64_t ldc, int64_t rows) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return tile<Rows, Vectors, Accumulate>(a, lda, b, pairs, c, ldc);
    rest<Rows - 1, Vectors, Accumulate>(a, lda, b, pairs, c, ldc, rows);
  }
}

template <int Vectors, bool Accumulate>
void panel(const bf16* a, int64_t lda, const bf16* b, int64_t pairs, float* c, int64_t ldc, int64_t rows) {
  for (; rows >= kRows; rows -= kRows, a += kRows * lda, c += kRows * ldc)
    tile<kRows, Vectors, Accumulate>(a, lda, b, pairs, c, ldc);
  rest<kRows - 1, Vectors, Accumulate>(a, lda, b, pairs, c, ldc, rows);
}

// c [rows, 16 * vectors] (+)= a [rows, 2 * pairs] times one packed panel.
template <bool Accumulate>
void multiply(int64_t vectors, const bf16* a, int64_t lda, const bf16* b, int64_t pairs, float* c, int64_t ldc,
              int64_t rows) {
  switch (vectors) {
    case 4: return panel<4, Accumulate>(a, lda, b, pairs, c, ldc, rows);
    case 3: return panel<3, Accumulate>(a, lda, b, pairs, c, ldc, rows);
    case 2: return panel<2, Accumulate>(a, lda, b, pairs, c, ldc, rows);
    default: return panel<1, Accumulate>(a, lda, b, pairs, c, ldc, rows);
  }
}

// What a thread needs for up to kQueries rows.
class Block {
 public:
  explicit Block(const Sizes& s)
      : sizes(s),
        q(aligned(q_, kQueries * 2 * s.pairs)),
        scores_(aligned(s_, kQueries * kKeys)),
        p(aligned(p_, kQueries * kKeys)),
        out_(aligned(o_, kQueries * s.columns)) {
    std::memset(q, 0, kQueries * 2 * s.pairs * sizeof(bf16));
  }

  const Sizes sizes;

 private:
  std::vector<bf16> q_, p_;
  std::vector<float> s_, o_;

 public:
  bf16* const q;  // [rows, 2 * pairs], to be filled by the caller

  // scale: of the scores, times log2(e).
  void run(int64_t rows, const bf16* keys, const bf16* values, int64_t n, float scale) {
    const int64_t padded = round_up(n, kLanes);
    for (int64_t first = 0; first < n; first += kKeys) {
      const int64_t width = std::min(kKeys, padded - first);
      for (int64_t k = 0; k < width; k += 64) {
        const int64_t vectors = std::min<int64_t>(4, (width - k) / kLanes);
        multiply<false>(vectors, q, 2 * sizes.pairs, keys + (first + k) * 2 * sizes.pairs, sizes.pairs, scores_ + k,
                        kKeys, rows);
      }
      for (int64_t r = 0; r < rows; ++r) softmax(r, std::min(kKeys, n - first), width, scale, first == 0);
      for (int64_t v = 0; v < sizes.columns / kLanes; v += 4) {
        const int64_t vectors = std::min<int64_t>(4, sizes.columns / kLanes - v);
        const bf16* b = values + v * kLanes * padded + first * vectors * kLanes;
        float* c = out_ + v * kLanes;
        if (first == 0)
          multiply<false>(vectors, p, kKeys, b, width / 2, c, sizes.columns, rows);
        else
          multiply<true>(vectors, p, kKeys, b, width / 2, c, sizes.columns, rows);
      }
    }
  }

  void store(int64_t r, bf16* to) const {
    const __m512 factor = _mm512_set1_ps(1.0f / sum_[r]);
    for (int64_t c = 0; c < sizes.d; c += kLanes)
      store_bf16(to + c, _mm512_mul_ps(_mm512_loadu_ps(out_ + r * sizes.columns + c), factor),
                 first_lanes(sizes.d - c));
  }

 private:
  // Scores of `valid` keys -> probabilities up to a factor, zero for the padding up to `width`.
  void softmax(int64_t r, int64_t valid, int64_t width, float scale, bool start) {
    float* s = scores_ + r * kKeys;
    const float low = -std::numeric_limits<float>::infinity();
    __m512 top = _mm512_set1_ps(low), second = top;
    int64_t at = 0;
    for (; at + 2 * kLanes <= valid; at += 2 * kLanes) {
      top = _mm512_max_ps(top, _mm512_loadu_ps(s + at));
      second = _mm512_max_ps(second, _mm512_loadu_ps(s + at + kLanes));
    }
    for (; at < valid; at += kLanes)
      top = _mm512_mask_max_ps(top, first_lanes(valid - at), top, _mm512_loadu_ps(s + at));
    top = _mm512_max_ps(top, second);
    const float before = start ? low : max_[r], now = std::max(before, _mm512_reduce_max_ps(top) * scale);
    const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(-now);
    const auto probabilities = [&](int64_t k) {
      return rough_exp2_ps(_mm512_fmadd_ps(_mm512_loadu_ps(s + k), factor, shift));
    };
    __m512 sum = _mm512_setzero_ps(), other = _mm512_setzero_ps();
    bf16* to = p + r * kKeys;
    int64_t k = 0;
    for (; k + 2 * kLanes <= valid; k += 2 * kLanes) {
      const __m512 low = probabilities(k), high = probabilities(k + kLanes);
      sum = _mm512_add_ps(sum, low);
      other = _mm512_add_ps(other, high);
      _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (; k < width; k += kLanes) {
      const __m512 e = _mm512_maskz_mov_ps(valid > k ? first_lanes(valid - k) : 0, probabilities(k));
      sum = _mm512_add_ps(sum, e);
      store_bf16(to + k, e);
    }
    sum = _mm512_add_ps(sum, other);
    max_[r] = now;
    if (start) {
      sum_[r] = _mm512_reduce_add_ps(sum);
      return;
    }
    const float decay = std::exp2(before - now);
    sum_[r] = sum_[r] * decay + _mm512_reduce_add_ps(sum);
    if (decay == 1.0f) return;
    const __m512 d = _mm512_set1_ps(decay);
    for (int64_t c = 0; c < sizes.columns; c += kLanes) {
      float* o = out_ + r * sizes.columns + c;
      _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), d));
    }
  }

  float* const scores_;
  bf16* const p;
  float* const out_;
  float max_[kQueries], sum_[kQueries];
};

constexpr float kLog2e = 1.44269504f;

}  // namespace

void attention(const AttentionArgs& a) {
  const Sizes s(a.d);
  const int64_t heads = a.batches * a.heads, blocks = (a.queries + kQueries - 1) / kQueries;
  std::vector<bf16> keys_, values_;
  bf16* keys = aligned(keys_, heads * s.keys_size(a.keys));
  bf16* values = aligned(values_, heads * s.values_size(a.keys));
  const auto head_of = [&](const Heads& x, int64_t i) {
    return x.base + i / a.heads * x.batch + i % a.heads * x.head;
  };
  // Whole panels of 64 keys, and pairs of keys, can be packed apart from each other.
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bf16 *k = head_of(a.k, i), *v = head_of(a.v, i);
      pack_keys([&](int64_t t) { return k + t * a.k.token; }, a.keys, s, keys + i * s.keys_size(a.keys));
      pack_values([&](int64_t t) { return v + t * a.v.token; }, a.keys, s, values + i * s.values_size(a.keys));
    }
  });
  at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Block block(s);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / blocks, first = task % blocks * kQueries;
      const int64_t rows = std::min(kQueries, a.queries - first);
      const bf16* q = head_of(a.q, i) + first * a.q.token;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(block.q + r * 2 * s.pairs, q + r * a.q.token, s.d * sizeof(bf16));
      block.run(rows, keys + i * s.keys_size(a.keys), values + i * s.values_size(a.keys), a.keys, a.scale * kLog2e);
      for (int64_t r = 0; r < rows; ++r)
        block.store(r, a.out + ((i / a.heads * a.queries + first + r) * a.heads + i % a.heads) * s.d);
    }
  });
}

void window_attention(const WindowArgs& a) {
  const Sizes s(a.d);
  const int64_t down = (a.h + a.window - 1) / a.window, across = (a.w + a.window - 1) / a.window;
  const int64_t keys = a.window * a.window, side = a.window / a.stride, queries = side * side;
  const int64_t part = a.heads * a.d, out_h = a.h / a.stride, out_w = a.w / a.stride;
  at::parallel_for(0, a.b * down * across, 1, [&](int64_t begin, int64_t end) {
    Block block(s);
    std::vector<bf16> keys_, values_;
    bf16 *packed_keys = aligned(keys_, s.keys_size(keys)), *packed_values = aligned(values_, s.values_size(keys));
    std::vector<const bf16*> tokens(keys);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (down * across), top = task / across % down * a.window, left = task % across * a.window;
      for (int64_t t = 0; t < keys; ++t) {
        const int64_t y = top + t / a.window, x = left + t % a.window;
        tokens[t] = y < a.h && x < a.w ? a.qkv + ((b * a.h + y) * a.w + x) * 3 * part : a.pad;
      }
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t at = head * a.d;
        pack_keys([&](int64_t t) { return tokens[t] + part + at; }, keys, s, packed_keys);
        pack_values([&](int64_t t) { return tokens[t] + 2 * part + at; }, keys, s, packed_values);
        for (int64_t first = 0; first < queries; first += kQueries) {
          const int64_t rows = std::min(kQueries, queries - first);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t y = (first + r) / side * a.stride, x = (first + r) % side * a.stride;
            bf16* q = block.q + r * 2 * s.pairs;
            std::memcpy(q, tokens[y * a.window + x] + at, s.d * sizeof(bf16));
            for (int64_t i = 1; i < a.stride * a.stride; ++i) {
              const bf16* other = tokens[(y + i / a.stride) * a.window + x + i % a.stride] + at;
              for (int64_t c = 0; c < s.d; c += kLanes) {
                const __mmask16 lanes = first_lanes(s.d - c);
                store_bf16(q + c, _mm512_max_ps(load_bf16(q + c, lanes), load_bf16(other + c, lanes)), lanes);
              }
            }
          }
          block.run(rows, packed_keys, packed_values, keys, a.scale * kLog2e);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t y = top / a.stride + (first + r) / side, x = left / a.stride + (first + r) % side;
            if (y < out_h && x < out_w) block.store(r, a.out + ((b * out_h + y) * out_w + x) * part + at);
          }
        }
      }
    }
  });
}

}  // namespace qsam2
