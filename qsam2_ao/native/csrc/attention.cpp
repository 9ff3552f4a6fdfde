// softmax(scale * q k^T) v with the scores of a few rows and keys at a time, so that they never leave the cache.
//
// Keys and values are rearranged once per head into what one instruction multiplies: panels of up to kVectors
// registers, each of 16 columns and, in bfloat16, two values along the sum (VDPBF16PS); where the kernels cannot
// multiply bfloat16, one value in float32. Keys: columns are keys, sums run over channels; values: columns are
// channels, sums run over keys. Sums are in float32; the softmax is computed online (Milakov and Gimelshein 2018), with exp2 and
// the scale folded in.
//
// Scores may also be products of int8 codes (SageAttention, Zhang et al. 2024): every query and every key is rounded to
// a grid of its own, keys less their mean over all keys, which takes the same from all scores of a query.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "tiles.h"

namespace qsam2 {
namespace {

constexpr int64_t kQueries = 96;  // rows of scores at a time
constexpr int64_t kKeys = 256;    // columns of scores at a time, a multiple of 64

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
  int64_t code_depth() const { return round_up(d, kCodes); }
  int64_t keys_size(int64_t keys) const { return round_up(keys, kLanes) * depth; }
  int64_t codes_size(int64_t keys) const { return round_up(keys, kLanes) * code_depth(); }
  int64_t values_size(int64_t keys) const { return round_up(keys, kLanes) * columns; }
};

// A register of operands, of which the first `left` are of the row and the others zero.
inline Bits load_wide(const bf16* row, int64_t left) {
  return kGroup == 2 ? load_bytes(row, 2 * left) : as_bits(load(row, first_lanes(left)));
}

inline Bits load_wide(const int8_t* row, int64_t left) {
  return load_bytes(row, left);
}

// Rows row(0) ... row(n - 1), each of d values, n padded with zeros: columns [panel][group][vector][16 keys][in group],
// a group being the values of type T that 32 bits hold.
template <typename T, typename Row>
void pack_keys(Row row, int64_t n, int64_t d, T* out) {
  constexpr int64_t kGroup = 4 / sizeof(T), kWide = kLanes * kGroup;
  const int64_t depth = round_up(d, kGroup);
  const int64_t vectors = (n + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t width = std::min<int64_t>(kVectors, vectors - v / kVectors * kVectors);
    T* panel = out + v / kVectors * kVectors * kLanes * depth;
    for (int64_t c = 0; c < depth; c += kWide) {
      Bits r[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t key = v * kLanes + i;
        r[i] = key < n ? load_wide(row(key) + c, d - c) : no_bits();
      }
      transpose(r);
      for (int64_t i = 0; i < std::min(kLanes, (depth - c) / kGroup); ++i)
        store_bits(panel + ((c / kGroup + i) * width + v % kVectors) * kWide, r[i]);
    }
  }
}

// Columns [panel][group of keys][vector][16 channels][kGroup]; keys padded with zeros to a multiple of 16.
template <typename Row>
void pack_values(Row row, int64_t n, const Sizes& s, Operand* out) {
  const int64_t rows = round_up(n, kLanes), vectors = s.columns / kLanes;
  for (int64_t key = 0; key < rows; key += kGroup) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t width = std::min<int64_t>(kVectors, vectors - v / kVectors * kVectors);
      const Lanes lanes = first_lanes(s.value_d - v * kLanes);
      const auto values = [&](int64_t i) {  // in the upper halves of 32 bits: float32
        return i < n ? as_bits(load(row(i) + v * kLanes, lanes)) : no_bits();
      };
      Bits group = values(key);
      if constexpr (kGroup == 2) group = shift_right_32<16>(group) | values(key + 1);
      store_bits(out + v / kVectors * kVectors * kLanes * rows + (key / kGroup * width + v % kVectors) * kWide, group);
    }
  }
}

// The int8 codes of a row of which value(c, lanes) are 16 values, handed to put(c, lanes, codes in 32 bits); returns
// their scale, which is NaN where a value is not finite.
template <typename Value, typename Put>
float code_row(const Value& value, int64_t d, const Put& put) {
  Floats top = zeros();
  for (int64_t c = 0; c < d; c += kLanes) top = larger(top, abs(value(c, first_lanes(d - c))));
  const Floats infinity = all(std::numeric_limits<float>::infinity());
  const bool finite = all_below(top, infinity);
  const float scale = finite ? reduce_max(top) / 127.0f : std::numeric_limits<float>::quiet_NaN();
  const Floats inverse = all(scale > 1e-30f ? 1.0f / scale : 0.0f);
  for (int64_t c = 0; c < d; c += kLanes) {
    const Lanes lanes = first_lanes(d - c);
    put(c, lanes, finite ? to_ints(value(c, lanes) * inverse) : no_bits());
  }
  return scale;
}

constexpr int32_t kUnsigned = 128;  // what the codes of queries are more than they stand for

// Packed codes of the keys of a head, what takes kUnsigned out of the scores, and their scales.
struct CodedKeys {
  int8_t* codes;
  int32_t* offsets;
  float* scales;
};

template <typename Row>
void pack_codes(Row row, int64_t n, const Sizes& s, const CodedKeys& out) {
  std::vector<float> mean(s.d);
  for (int64_t key = 0; key < n; ++key)
    for (int64_t c = 0; c < s.d; c += kLanes) {
      const Lanes lanes = first_lanes(s.d - c);
      store(&mean[c], load(&mean[c], lanes) + load(row(key) + c, lanes), lanes);
    }
  for (float& m : mean) m /= n;
  std::vector<int8_t> codes(n * s.d);
  for (int64_t key = 0; key < n; ++key) {
    Bits sum = no_bits();
    const auto less_mean = [&](int64_t c, Lanes lanes) {
      return load(row(key) + c, lanes) - load(&mean[c], lanes);
    };
    out.scales[key] = code_row(less_mean, s.d, [&](int64_t c, Lanes lanes, Bits x) {
      sum = add_ints(sum, x);
      store_u8((uint8_t*)&codes[key * s.d + c], x, lanes);
    });
    out.offsets[key] = -(kUnsigned - kCodesLess) * reduce_add_ints(sum);
  }
  pack_keys([&](int64_t key) { return &codes[key * s.d]; }, n, s.d, out.codes);
}

// What a thread needs for up to kQueries rows.
class Block {
 public:
  explicit Block(const Sizes& s)
      : sizes(s),
        queries_(aligned(q_, kQueries * s.depth)),
        codes_(aligned(c_, kQueries * s.code_depth())),
        scores_(aligned(s_, kQueries * kKeys)),
        weights_(aligned(p_, kQueries * kKeys)),
        out_(aligned(o_, kQueries * s.columns)) {
    std::memset(queries_, 0, kQueries * s.depth * sizeof(Operand));
  }

  void query(int64_t r, const bf16* from) {
    for (int64_t c = 0; c < sizes.d; c += kLanes) {
      const Lanes lanes = first_lanes(sizes.d - c);
      store(queries_ + r * sizes.depth + c, load(from + c, lanes), lanes);
    }
    scales_[r] = 1.0f;
  }

  // The same, for keys that are codes.
  void code_query(int64_t r, const bf16* from) {
    uint8_t* to = codes_ + r * sizes.code_depth();
    const auto value = [&](int64_t c, Lanes lanes) { return load(from + c, lanes); };
    scales_[r] = code_row(value, sizes.d, [&](int64_t c, Lanes lanes, Bits x) {
      store_u8(to + c, add_ints(x, all_ints(kUnsigned)), lanes);
    });
  }

  // The larger of what is there and another query, channel by channel.
  void pool_query(int64_t r, const bf16* from) {
    for (int64_t c = 0; c < sizes.d; c += kLanes) {
      const Lanes lanes = first_lanes(sizes.d - c);
      Operand* q = queries_ + r * sizes.depth + c;
      store(q, larger(load(q, lanes), load(from + c, lanes)), lanes);
    }
  }

  // scale: of the scores, times log2(e).
  template <typename Keys>
  void run(int64_t rows, const Keys& keys, const Operand* values, int64_t n, float scale) {
    const int64_t padded = round_up(n, kLanes);
    for (int64_t first = 0; first < n; first += kKeys) {
      const int64_t width = std::min(kKeys, padded - first);
      for (int64_t k = 0; k < width; k += kVectors * kLanes) {
        const int64_t vectors = std::min<int64_t>(kVectors, (width - k) / kLanes);
        multiply(vectors, scores_tile(keys, first + k, scores_ + k), rows);
      }
      for (int64_t r = 0; r < rows; ++r) softmax(r, std::min(kKeys, n - first), width, scale * scales_[r], first == 0);
      for (int64_t v = 0; v < sizes.columns / kLanes; v += kVectors) {
        const int64_t vectors = std::min<int64_t>(kVectors, sizes.columns / kLanes - v);
        const Operand* b = values + v * kLanes * padded + first * vectors * kLanes;
        float* c = out_ + v * kLanes;
        if (first == 0) multiply(vectors, FloatTile<false>{weights_, kKeys, b, width, c, sizes.columns}, rows);
        else multiply(vectors, FloatTile<true>{weights_, kKeys, b, width, c, sizes.columns}, rows);
      }
    }
  }

  void result(int64_t r, const Rounded& to, int64_t at) const {
    const Floats factor = all(1.0f / sum_[r]);
    for (int64_t c = 0; c < sizes.value_d; c += kLanes) {
      const Floats x = load(out_ + r * sizes.columns + c) * factor;
      const Lanes lanes = first_lanes(sizes.value_d - c);
      if (to.halves) {
        store(to.halves + at + c, x, lanes);
        continue;
      }
      bf16 half[kLanes];
      store(half, x, lanes);
      store_u8(to.codes + at + c, codes_of(to.grid, load(half, lanes)), lanes);
    }
  }

 private:
  FloatTile<false> scores_tile(const Operand* keys, int64_t key, float* to) const {
    return {queries_, sizes.depth, keys + key * sizes.depth, sizes.depth, to, kKeys};
  }

  CodeTile scores_tile(const CodedKeys& keys, int64_t key, float* to) const {
    const int64_t depth = sizes.code_depth();
    return {codes_, keys.codes + key * depth, depth, to, kKeys, keys.offsets + key, keys.scales + key};
  }

  // Scores of `valid` keys -> probabilities up to a factor, zero for the padding up to `width`.
  void softmax(int64_t r, int64_t valid, int64_t width, float scale, bool start) {
    float* s = scores_ + r * kKeys;
    const float low = -std::numeric_limits<float>::infinity();
    Floats top = all(low), second = top;
    int64_t at = 0;
    for (; at + 2 * kLanes <= valid; at += 2 * kLanes) {
      top = max(top, load(s + at));
      second = max(second, load(s + at + kLanes));
    }
    for (; at < valid; at += kLanes)
      top = select(first_lanes(valid - at), max(top, load(s + at)), top);
    top = max(top, second);
    // Finite, so that keys that weigh nothing (scores of -infinity) give zeros as long as there may be others.
    const float lowest = std::numeric_limits<float>::lowest();
    const float before = start ? lowest : max_[r], now = std::max(before, reduce_max(top) * scale);
    const Floats factor = all(scale), shift = all(-now);
    const auto probabilities = [&](int64_t k) {
      return rough_exp2(fma(load(s + k), factor, shift));
    };
    Floats sum = zeros(), other = zeros();
    Operand* to = weights_ + r * kKeys;
    int64_t k = 0;
    for (; k + 2 * kLanes <= valid; k += 2 * kLanes) {
      const Floats low = probabilities(k), high = probabilities(k + kLanes);
      sum = sum + low;
      other = other + high;
      store_two(to + k, low, high);
    }
    for (; k < width; k += kLanes) {
      const Floats e = keep(first_lanes(std::max<int64_t>(0, valid - k)), probabilities(k));
      sum = sum + e;
      store(to + k, e);
    }
    sum = sum + other;
    max_[r] = now;
    if (start) {
      sum_[r] = reduce_add(sum);
      return;
    }
    const float decay = std::exp2(before - now);
    sum_[r] = sum_[r] * decay + reduce_add(sum);
    if (decay == 1.0f) return;
    const Floats d = all(decay);
    for (int64_t c = 0; c < sizes.columns; c += kLanes) {
      float* o = out_ + r * sizes.columns + c;
      store(o, load(o) * d);
    }
  }

  const Sizes sizes;
  std::vector<Operand> q_, p_;
  std::vector<uint8_t> c_;
  std::vector<float> s_, o_;
  Operand* const queries_;  // [kQueries, depth]
  uint8_t* const codes_;    // the same as codes, [kQueries, code_depth]
  float* const scores_;     // [kQueries, kKeys]
  Operand* const weights_;  // of the values, [kQueries, kKeys]
  float* const out_;        // [kQueries, columns]
  float scales_[kQueries];  // of the queries, where they are codes
  float max_[kQueries], sum_[kQueries];
};

constexpr float kLog2e = 1.44269504f;

// pack(head, key), called for each head of a batch, packs its keys; keys_of(head) gives them to Block, whose queries
// query(block, row, values) sets.
template <typename Pack, typename KeysOf, typename Query>
void attend(const AttentionArgs& a, const Sizes& s, const Pack& pack, const KeysOf& keys_of, const Query& query) {
  const int64_t heads = a.batches * a.heads, blocks = (a.queries + kQueries - 1) / kQueries;
  std::vector<Operand> values_;
  Operand* values = aligned(values_, heads * s.values_size(a.keys));
  const auto head_of = [&](const Heads& x, int64_t i) {
    return x.base + i / a.heads * x.batch + i % a.heads * x.head;
  };
  parallel(heads, worth_a_thread(8.0 * a.keys * (a.d + a.value_d)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bf16 *k = head_of(a.k, i), *v = head_of(a.v, i);
      pack(i, [&](int64_t t) { return k + t * a.k.token; });
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
      for (int64_t r = 0; r < rows; ++r) query(block, r, q + r * a.q.token);
      block.run(rows, keys_of(i), values + i * s.values_size(a.keys), a.keys, a.scale * kLog2e);
      for (int64_t r = 0; r < rows; ++r)
        block.result(r, a.out, ((i / a.heads * a.queries + first + r) * a.heads + i % a.heads) * s.value_d);
    });
  });
}

}  // namespace

void attention(const AttentionArgs& a) {
  const Sizes s(a.d, a.value_d);
  const int64_t heads = a.batches * a.heads;
  if (!a.int8_scores) {
    std::vector<Operand> keys_;
    Operand* keys = aligned(keys_, heads * s.keys_size(a.keys));
    const auto keys_of = [&](int64_t i) { return keys + i * s.keys_size(a.keys); };
    const auto pack = [&](int64_t i, const auto& row) { pack_keys(row, a.keys, s.d, keys_of(i)); };
    return attend(a, s, pack, keys_of, [](Block& block, int64_t r, const bf16* q) { block.query(r, q); });
  }
  const int64_t columns = round_up(a.keys, kLanes);
  std::vector<int8_t> codes_;
  std::vector<int32_t> offsets(heads * columns);
  std::vector<float> scales(heads * columns);
  int8_t* codes = aligned(codes_, heads * s.codes_size(a.keys));
  const auto keys_of = [&](int64_t i) {
    return CodedKeys{codes + i * s.codes_size(a.keys), &offsets[i * columns], &scales[i * columns]};
  };
  const auto pack = [&](int64_t i, const auto& row) { pack_codes(row, a.keys, s, keys_of(i)); };
  attend(a, s, pack, keys_of, [](Block& block, int64_t r, const bf16* q) { block.code_query(r, q); });
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
        pack_keys([&](int64_t t) { return tokens[t] + part + at; }, keys, s.d, packed_keys);
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
            if (y < out_h && x < out_w) block.result(r, a.out, ((b * out_h + y) * out_w + x) * part + at);
          }
        }
      }
    });
  });
}

}  // namespace qsam2
