// softmax(scale * q k^T) v with the scores of a few rows and keys at a time, so that they never leave the cache.
//
// Keys and values are rearranged once per head into what one instruction multiplies: panels of up to four registers,
// each of 16 columns and, in bfloat16, two values along the sum (VDPBF16PS); where the CPU cannot multiply bfloat16, one
// value in float32. Keys: columns are keys, sums run over channels; values: columns are channels, sums run over keys.
// Sums are in float32; the softmax is computed online (Milakov and Gimelshein 2018), with exp2 and the scale folded in.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"

namespace qsam2 {
namespace {

constexpr int64_t kQueries = 96;  // rows of scores at a time
constexpr int64_t kKeys = 256;    // columns of scores at a time, a multiple of 64
constexpr int kRows = 6;          // rows of a tile: 6 x 4 accumulators

#ifdef __AVX512BF16__
using Operand = bf16;

inline __m512 add_products(__m512 acc, __m512i x, __m512i w) {
  return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
}

inline void store_two(bf16* p, __m512 low, __m512 high) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#else
using Operand = float;

inline __m512 add_products(__m512 acc, __m512i x, __m512i w) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), acc);
}

inline void store_two(float* p, __m512 low, __m512 high) {
  store(p, low);
  store(p + kLanes, high);
}
#endif

constexpr int64_t kGroup = 4 / sizeof(Operand);  // operands along the sum in 32 bits
constexpr int64_t kWide = kLanes * kGroup;       // operands of a register

template <typename T>
T* aligned(std::vector<T>& buffer, int64_t n) {
  buffer.resize(n + 64 / sizeof(T));
  return (T*)round_up((int64_t)buffer.data(), 64);
}

struct Sizes {
  int64_t d, value_d;      // channels of queries and keys; of values
  int64_t depth, columns;  // the former padded to groups, the latter to registers
  Sizes(int64_t d, int64_t value_d)
      : d(d), value_d(value_d), depth(round_up(d, kGroup)), columns(round_up(value_d, kLanes)) {}
  int64_t keys_size(int64_t keys) const { return round_up(keys, kLanes) * depth; }
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

// A register of operands, of which the first `left` are of the row and the others zero.
inline __m512i load_wide(const bf16* row, int64_t left) {
#ifdef __AVX512BF16__
  return _mm512_maskz_loadu_epi16(left >= kWide ? 0xFFFFFFFFu : (1u << left) - 1, row);
#else
  return _mm512_castps_si512(load(row, first_lanes(left)));
#endif
}

// Rows row(0) ... row(n - 1), each of d values, n padded with zeros: columns [panel][group][vector][16 keys][kGroup].
template <typename Row>
void pack_keys(Row row, int64_t n, const Sizes& s, Operand* out) {
  const int64_t vectors = (n + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t width = std::min<int64_t>(4, vectors - v / 4 * 4);
    Operand* panel = out + v / 4 * 4 * kLanes * s.depth;
    for (int64_t c = 0; c < s.depth; c += kWide) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t key = v * kLanes + i;
        r[i] = key < n ? load_wide(row(key) + c, s.d - c) : _mm512_setzero_si512();
      }
      transpose(r);
      for (int64_t i = 0; i < std::min(kLanes, (s.depth - c) / kGroup); ++i)
        _mm512_storeu_si512(panel + ((c / kGroup + i) * width + v % 4) * kWide, r[i]);
    }
  }
}

// Columns [panel][group of keys][vector][16 channels][kGroup]; keys padded with zeros to a multiple of 16.
template <typename Row>
void pack_values(Row row, int64_t n, const Sizes& s, Operand* out) {
  const int64_t rows = round_up(n, kLanes), vectors = s.columns / kLanes;
  for (int64_t key = 0; key < rows; key += kGroup) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t width = std::min<int64_t>(4, vectors - v / 4 * 4);
      const __mmask16 lanes = first_lanes(s.value_d - v * kLanes);
      const auto values = [&](int64_t i) {  // in the upper halves of 32 bits: float32
        return i < n ? _mm512_castps_si512(load(row(i) + v * kLanes, lanes)) : _mm512_setzero_si512();
      };
      __m512i group = values(key);
      if constexpr (kGroup == 2) group = _mm512_or_si512(_mm512_srli_epi32(group, 16), values(key + 1));
      _mm512_storeu_si512(out + v / 4 * 4 * kLanes * rows + (key / kGroup * width + v % 4) * kWide, group);
    }
  }
}

template <int Rows, int Vectors, bool Accumulate>
void tile(const Operand* a, int64_t lda, const Operand* b, int64_t depth, float* c, int64_t ldc) {
  __m512 acc[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j)
      acc[i][j] = Accumulate ? _mm512_loadu_ps(c + i * ldc + j * kLanes) : _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += kGroup, a += kGroup, b += kWide * Vectors) {
    __m512i w[Vectors];
    for (int j = 0; j < Vectors; ++j) w[j] = _mm512_loadu_si512(b + kWide * j);
    for (int i = 0; i < Rows; ++i) {
      const __m512i x = broadcast_32(a + i * lda);
      for (int j = 0; j < Vectors; ++j) acc[i][j] = add_products(acc[i][j], x, w[j]);
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) _mm512_storeu_ps(c + i * ldc + j * kLanes, acc[i][j]);
}

template <int Rows, int Vectors, bool Accumulate>
void rest(const Operand* a, int64_t lda, const Operand* b, int64_t depth, float* c, int64_t ldc, int64_t rows) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return tile<Rows, Vectors, Accumulate>(a, lda, b, depth, c, ldc);
    rest<Rows - 1, Vectors, Accumulate>(a, lda, b, depth, c, ldc, rows);
  }
}

template <int Vectors, bool Accumulate>
void panel(const Operand* a, int64_t lda, const Operand* b, int64_t depth, float* c, int64_t ldc, int64_t rows) {
  for (; rows >= kRows; rows -= kRows, a += kRows * lda, c += kRows * ldc)
    tile<kRows, Vectors, Accumulate>(a, lda, b, depth, c, ldc);
  rest<kRows - 1, Vectors, Accumulate>(a, lda, b, depth, c, ldc, rows);
}

// c [rows, 16 * vectors] (+)= a [rows, depth] times one packed panel.
template <bool Accumulate>
void multiply(int64_t vectors, const Operand* a, int64_t lda, const Operand* b, int64_t depth, float* c, int64_t ldc,
              int64_t rows) {
  switch (vectors) {
    case 4: return panel<4, Accumulate>(a, lda, b, depth, c, ldc, rows);
    case 3: return panel<3, Accumulate>(a, lda, b, depth, c, ldc, rows);
    case 2: return panel<2, Accumulate>(a, lda, b, depth, c, ldc, rows);
    default: return panel<1, Accumulate>(a, lda, b, depth, c, ldc, rows);
  }
}

// What a thread needs for up to kQueries rows.
class Block {
 public:
  explicit Block(const Sizes& s)
      : sizes(s),
        queries_(aligned(q_, kQueries * s.depth)),
        scores_(aligned(s_, kQueries * kKeys)),
        weights_(aligned(p_, kQueries * kKeys)),
        out_(aligned(o_, kQueries * s.columns)) {
    std::memset(queries_, 0, kQueries * s.depth * sizeof(Operand));
  }

  void query(int64_t r, const bf16* from) {
    for (int64_t c = 0; c < sizes.d; c += kLanes) {
      const __mmask16 lanes = first_lanes(sizes.d - c);
      store(queries_ + r * sizes.depth + c, load(from + c, lanes), lanes);
    }
  }

  // The larger of what is there and another query, channel by channel.
  void pool_query(int64_t r, const bf16* from) {
    for (int64_t c = 0; c < sizes.d; c += kLanes) {
      const __mmask16 lanes = first_lanes(sizes.d - c);
      Operand* q = queries_ + r * sizes.depth + c;
      store(q, larger(load(q, lanes), load(from + c, lanes)), lanes);
    }
  }

  // scale: of the scores, times log2(e).
  void run(int64_t rows, const Operand* keys, const Operand* values, int64_t n, float scale) {
    const int64_t padded = round_up(n, kLanes);
    for (int64_t first = 0; first < n; first += kKeys) {
      const int64_t width = std::min(kKeys, padded - first);
      for (int64_t k = 0; k < width; k += 64) {
        const int64_t vectors = std::min<int64_t>(4, (width - k) / kLanes);
        const Operand* b = keys + (first + k) * sizes.depth;
        multiply<false>(vectors, queries_, sizes.depth, b, sizes.depth, scores_ + k, kKeys, rows);
      }
      for (int64_t r = 0; r < rows; ++r) softmax(r, std::min(kKeys, n - first), width, scale, first == 0);
      for (int64_t v = 0; v < sizes.columns / kLanes; v += 4) {
        const int64_t vectors = std::min<int64_t>(4, sizes.columns / kLanes - v);
        const Operand* b = values + v * kLanes * padded + first * vectors * kLanes;
        float* c = out_ + v * kLanes;
        if (first == 0)
          multiply<false>(vectors, weights_, kKeys, b, width, c, sizes.columns, rows);
        else
          multiply<true>(vectors, weights_, kKeys, b, width, c, sizes.columns, rows);
      }
    }
  }

  void result(int64_t r, bf16* to) const {
    const __m512 factor = _mm512_set1_ps(1.0f / sum_[r]);
    for (int64_t c = 0; c < sizes.value_d; c += kLanes)
      store(to + c, _mm512_mul_ps(_mm512_loadu_ps(out_ + r * sizes.columns + c), factor),
            first_lanes(sizes.value_d - c));
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
    Operand* to = weights_ + r * kKeys;
    int64_t k = 0;
    for (; k + 2 * kLanes <= valid; k += 2 * kLanes) {
      const __m512 low = probabilities(k), high = probabilities(k + kLanes);
      sum = _mm512_add_ps(sum, low);
      other = _mm512_add_ps(other, high);
      store_two(to + k, low, high);
    }
    for (; k < width; k += kLanes) {
      const __m512 e = _mm512_maskz_mov_ps(valid > k ? first_lanes(valid - k) : 0, probabilities(k));
      sum = _mm512_add_ps(sum, e);
      store(to + k, e);
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

  const Sizes sizes;
  std::vector<Operand> q_, p_;
  std::vector<float> s_, o_;
  Operand* const queries_;  // [kQueries, depth]
  float* const scores_;     // [kQueries, kKeys]
  Operand* const weights_;  // of the values, [kQueries, kKeys]
  float* const out_;        // [kQueries, columns]
  float max_[kQueries], sum_[kQueries];
};

constexpr float kLog2e = 1.44269504f;

}  // namespace

void attention(const AttentionArgs& a) {
  const Sizes s(a.d, a.value_d);
  const int64_t heads = a.batches * a.heads, blocks = (a.queries + kQueries - 1) / kQueries;
  std::vector<Operand> keys_, values_;
  Operand* keys = aligned(keys_, heads * s.keys_size(a.keys));
  Operand* values = aligned(values_, heads * s.values_size(a.keys));
  const auto head_of = [&](const Heads& x, int64_t i) {
    return x.base + i / a.heads * x.batch + i % a.heads * x.head;
  };
  parallel(heads, worth_a_thread(8.0 * a.keys * (a.d + a.value_d)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bf16 *k = head_of(a.k, i), *v = head_of(a.v, i);
      pack_keys([&](int64_t t) { return k + t * a.k.token; }, a.keys, s, keys + i * s.keys_size(a.keys));
      pack_values([&](int64_t t) { return v + t * a.v.token; }, a.keys, s, values + i * s.values_size(a.keys));
    }
  });
  const double cost = 4.0 * std::min(kQueries, a.queries) * a.keys * (a.d + a.value_d);
  parallel_with_scratch(heads * blocks, worth_a_thread(cost), [&](const auto& each) {
    Block block(s);
    each([&](int64_t task) {
      const int64_t i = task / blocks, first = task % blocks * kQueries;
      const int64_t rows = std::min(kQueries, a.queries - first);
      const bf16* q = head_of(a.q, i) + first * a.q.token;
      for (int64_t r = 0; r < rows; ++r) block.query(r, q + r * a.q.token);
      block.run(rows, keys + i * s.keys_size(a.keys), values + i * s.values_size(a.keys), a.keys, a.scale * kLog2e);
      for (int64_t r = 0; r < rows; ++r)
        block.result(r, a.out + ((i / a.heads * a.queries + first + r) * a.heads + i % a.heads) * s.value_d);
    });
  });
}

void window_attention(const WindowArgs& a) {
  const Sizes s(a.d, a.d);
  const int64_t down = (a.h + a.window - 1) / a.window, across = (a.w + a.window - 1) / a.window;
  const int64_t keys = a.window * a.window, side = a.window / a.stride, queries = side * side;
  const int64_t part = a.heads * a.d, out_h = a.h / a.stride, out_w = a.w / a.stride;
  parallel_with_scratch(a.b * down * across, worth_a_thread(8.0 * queries * keys * part), [&](const auto& each) {
    Block block(s);
    std::vector<Operand> keys_, values_;
    Operand *packed_keys = aligned(keys_, s.keys_size(keys)), *packed_values = aligned(values_, s.values_size(keys));
    std::vector<const bf16*> tokens(keys);
    each([&](int64_t task) {
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
            block.query(r, tokens[y * a.window + x] + at);
            for (int64_t i = 1; i < a.stride * a.stride; ++i)
              block.pool_query(r, tokens[(y + i / a.stride) * a.window + x + i % a.stride] + at);
          }
          block.run(rows, packed_keys, packed_values, keys, a.scale * kLog2e);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t y = top / a.stride + (first + r) / side, x = left / a.stride + (first + r) % side;
            if (y < out_h && x < out_w) block.result(r, a.out + ((b * out_h + y) * out_w + x) * part + at);
          }
        }
      }
    });
  });
}

}  // namespace qsam2
