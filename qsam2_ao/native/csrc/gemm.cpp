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
#include <cstdlib>
#include <vector>

#include "dots.h"
#include "parallel.h"
#include "simd.h"

namespace qsam2 {
namespace {

constexpr int64_t kBlock = 192;  // a multiple of every tile's rows

struct Panel {
  int64_t first;    // output channel
  int64_t vectors;  // of 16 output channels
};

// As few panels of at most kVectors vectors as possible, of even width.
std::vector<Panel> panels_of(int64_t out) {
  const int64_t vectors = (out + kLanes - 1) / kLanes, count = (vectors + kVectors - 1) / kVectors;
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
void decode(const uint8_t* in, int64_t registers, int bits, Bits table, int8_t* out) {
  if (bits == 4) {
    const Bits low = all_bytes(15);
    for (int64_t r = 0; r < registers; r += 2, in += 64, out += 128) {
      const Bits v = load_bits(in);
      store_bits(out, look_up(table, v & low));
      store_bits(out + 64, look_up(table, shift_right_16<4>(v) & low));
    }
    return;
  }
  const Bits low = all_bytes(3), third = all_bytes(4);
  for (int64_t r = 0; r < registers; r += 4, out += 256) {
    const Bits v = load_bits(in);
    Bits codes[4] = {v & low, shift_right_16<2>(v) & low, shift_right_16<4>(v) & low, shift_right_16<6>(v) & low};
    in += 64;
    if (bits == 3) {
      for (int j = 0; j < 4; ++j) codes[j] = codes[j] | where_bits(in + 8 * j, third);
      in += 32;
    }
    for (int j = 0; j < 4; ++j) store_bits(out + 64 * j, look_up(table, codes[j]));
  }
}

template <Activation act>
Floats activate(Floats y) {
  if (act == Activation::kGelu) return gelu(y);
  if (act == Activation::kRelu) return max(zeros(), y);  // the second if it is NaN
  return y;
}

// What comes after the sums: rows x 16 of them, `stride` apart, of one column of registers.
template <Activation act>
void finish(const GemmArgs& g, const int32_t* sums, int64_t stride, int64_t rows, int64_t row, int64_t column) {
  const Lanes lanes = first_lanes(g.n - column);
  const Floats alpha = load(g.alpha + column, lanes);
  const Floats beta = load(g.beta + column, lanes);
  const auto each = [&](auto residual, auto write) {
    for (int64_t i = 0, at = row * g.n + column; i < rows; ++i, at += g.n) {
      const Floats sum = to_floats(load_bits(sums + i * stride));
      write(at, residual(activate<act>(fma(sum, alpha, beta)), at));
    }
  };
  const auto to = [&](auto residual) {
    if (g.out_bf16) {
      each(residual, [&](int64_t at, Floats y) { store(g.out_bf16 + at, y, lanes); });
    } else if (g.out_u8) {
      const Floats inverse = all(1.0f / g.grid.scale);
      each(residual, [&](int64_t at, Floats y) {
        store_u8(g.out_u8 + at, near_codes_of(g.grid, y, inverse), lanes);
      });
    } else {
      each(residual, [&](int64_t at, Floats y) { store(g.out_f32 + at, y, lanes); });
    }
  };
  if (g.residual_bf16)
    to([&](Floats y, int64_t at) { return y + load(g.residual_bf16 + at, lanes); });
  else if (g.residual_f32)
    to([&](Floats y, int64_t at) { return y + load(g.residual_f32 + at, lanes); });
  else
    to([](Floats y, int64_t) { return y; });
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
  alignas(64) int32_t sums[Rows][Vectors][kLanes];
  prefetch<Rows>(g, row, column, Vectors);
  if (kNarrow > 0 && g.narrow) sum_narrow_codes<Rows, Vectors>(g.x + row * g.k, g.k, panel, sums);
  else sum_codes<Rows, Vectors>(g.x + row * g.k, g.k, panel, sums);
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

template <Activation act, int Vectors = kVectors>
void block(const GemmArgs& g, const int8_t* panel, const Panel& at, int64_t first, int64_t last) {
  if constexpr (Vectors > 1)
    if (at.vectors < Vectors) return block<act, Vectors - 1>(g, panel, at, first, last);
  constexpr int kRows = kTileRows<Vectors>;
  for (; first + kRows <= last; first += kRows) tile<kRows, Vectors, act>(g, panel, first, at.first);
  rest<kRows - 1, Vectors, act>(g, panel, first, last - first, at.first);
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
  const Bits ones = all_bytes(1), low = all_bytes(3), third = all_bytes(4);
  const Bits sign = all_bytes(-128);
  parallel(panels.size(), worth_a_thread(64.0 * 32 * k), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Panel& p = panels[i];
      for (int64_t v = 0; v < p.vectors; ++v) {
        const int64_t channel = p.first + v * kLanes;
        const Lanes lanes = first_lanes(n - channel);
        Bits sum = all_ints(kCodesLess * k);
        for (int64_t step = 0; step < k / 4; ++step) {
          const uint8_t* from = codes + channel * k + 4 * step;
          const Bits c = gather_32(from, k, lanes);
          add_dots(sum, c, ones);
          const int64_t r = step * p.vectors + v;
          const auto add = [&](uint8_t* to, Bits x) {
            store_bits(to, load_bits(to) | x);
          };
          if (bits == 8) {
            store_bits(at[i] + 64 * r, c ^ sign);  // code - 128 as int8
          } else if (bits == 4) {
            add(at[i] + r / 2 * 64, shift_left_16(c, 4 * (r % 2)));
          } else {
            uint8_t* group = at[i] + r / 4 * (bits == 3 ? 96 : 64);
            add(group, shift_left_16(c & low, 2 * (r % 4)));
            if (bits == 3) store_tests(group + 64 + 8 * (r % 4), c, third);
          }
        }
        store_ints(sums + channel, sum, lanes);
      }
    }
  });
}

void gemm(GemmArgs g) {
  const auto fits = [](int8_t w) { return std::abs(w) <= kNarrow; };
  g.narrow = g.bits < 8 && std::all_of(g.table, g.table + (1 << g.bits), fits);
  const std::vector<Panel> panels = panels_of(g.n);
  std::vector<const uint8_t*> packed;
  const uint8_t* at = g.weight;
  for (const Panel& p : panels) {
    packed.push_back(at);
    at += panel_bytes(g.k / 4 * p.vectors, g.bits);
  }
  const Bits table = load_table(g.table);
  const int64_t blocks = (g.m + kBlock - 1) / kBlock, count = panels.size();
  // With few rows, threads share the panels instead of the rows.
  const int64_t split = std::min<int64_t>(count, blocks >= 2 * threads() ? 1 : 2 * threads());
  const double cost = double(g.m) * g.n * g.k / (blocks * split);
  parallel_with_scratch(blocks * split, worth_a_thread(cost), [&](const auto& each) {
    std::vector<int8_t> buffer(g.bits == 8 && kSteps == 1 ? 0 : round_up(g.k / 4, 4) * 64 * kVectors + 64);
    auto* scratch = (int8_t*)round_up((int64_t)buffer.data(), 64);
    each([&](int64_t task) {
      const int64_t first = task / split * kBlock, last = std::min(first + kBlock, g.m);
      for (int64_t p = task % split; p < count; p += split) {
        const int8_t* panel = (const int8_t*)packed[p];
        if (g.bits != 8) {
          decode(packed[p], g.k / 4 * panels[p].vectors, g.bits, table, scratch);
          panel = scratch;
        }
        if (kSteps > 1) {
          join_steps(panel, g.k / 4, scratch);
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
