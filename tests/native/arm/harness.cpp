// Runs the kernels on what it reads, for CPUs that torch is not there for: see arm_kernels.py. A call is a line with the
// kernel's name and numbers, then the bytes of its inputs; the bytes of its outputs are the answer.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

// All in one file, which compiles in half the time.
#include "attention.cpp"
#include "elementwise.cpp"
#include "gemm.cpp"
#include "rotary.cpp"
#include "upscale.cpp"

namespace qsam2 {

int64_t threads() { return 2; }  // one after the other

void on_threads(int64_t n, const std::function<void(int64_t, int64_t)>& f) {
  for (int64_t i = 0; i < n; ++i) f(i, i + 1);
}

}  // namespace qsam2

namespace {

using qsam2::bf16;

template <typename T>
std::vector<T> read(int64_t n) {
  std::vector<T> values(n);
  std::cin.read((char*)values.data(), n * sizeof(T));
  if (!std::cin) throw std::runtime_error("the input is too short");
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  std::cout.write((const char*)values.data(), values.size() * sizeof(T));
}

// Inputs and outputs that are bfloat16 (1), float32 (0) or codes (2).
struct Values {
  Values(int kind, int64_t n) : kind(kind), half(kind == 1 ? n : 0), single(kind == 0 ? n : 0), codes(kind == 2 ? n : 0) {}
  static Values from_input(int kind, int64_t n) {
    Values values(kind, 0);
    if (kind == 1) values.half = read<bf16>(n);
    if (kind == 0) values.single = read<float>(n);
    return values;
  }
  void answer() const { kind == 1 ? write(half) : kind == 0 ? write(single) : write(codes); }
  bf16* as_half() { return kind == 1 ? half.data() : nullptr; }
  float* as_single() { return kind == 0 ? single.data() : nullptr; }
  uint8_t* as_codes() { return kind == 2 ? codes.data() : nullptr; }

  int kind;
  std::vector<bf16> half;
  std::vector<float> single;
  std::vector<uint8_t> codes;
};

void pack(std::istream& line) {
  int64_t n, k;
  int bits;
  line >> n >> k >> bits;
  const auto codes = read<uint8_t>(n * k);
  std::vector<int32_t> sums(n);
  std::vector<uint8_t> weight(qsam2::packed_bytes(n, k, bits));
  qsam2::pack(codes.data(), n, k, bits, weight.data(), sums.data());
  write(sums);
  write(weight);
}

void gemm(std::istream& line) {
  qsam2::GemmArgs a{};
  int activation, residual_kind, out_kind;  // a residual of kind -1 is none
  line >> a.m >> a.n >> a.k >> a.bits >> activation >> residual_kind >> out_kind;
  line >> a.grid.scale >> a.grid.zero_point >> a.grid.high;
  a.activation = (qsam2::Activation)activation;
  const auto weight = read<uint8_t>(qsam2::packed_bytes(a.n, a.k, a.bits));
  const auto table = read<int8_t>(16);
  const auto alpha = read<float>(a.n), beta = read<float>(a.n);
  const auto x = read<uint8_t>(a.m * a.k);
  Values residual = Values::from_input(residual_kind, a.m * a.n), out(out_kind, a.m * a.n);
  a.x = x.data(), a.weight = weight.data(), a.table = table.data(), a.alpha = alpha.data(), a.beta = beta.data();
  a.residual_bf16 = residual.as_half(), a.residual_f32 = residual.as_single();
  a.out_bf16 = out.as_half(), a.out_f32 = out.as_single(), a.out_u8 = out.as_codes();
  qsam2::gemm(a);
  out.answer();
}

void quantize(std::istream& line) {
  int kind;
  int64_t n;
  qsam2::Grid grid;
  line >> kind >> n >> grid.scale >> grid.zero_point >> grid.high;
  Values x = Values::from_input(kind, n), out(2, n);
  qsam2::quantize(x.as_half(), x.as_single(), n, grid, out.as_codes());
  out.answer();
}

void layer_norm(std::istream& line) {
  qsam2::LayerNormArgs a{};
  int kind, out_kind;
  line >> kind >> a.rows >> a.n >> a.eps >> out_kind >> a.grid.scale >> a.grid.zero_point >> a.grid.high;
  Values x = Values::from_input(kind, a.rows * a.n), out(out_kind, a.rows * a.n);
  const auto weight = read<float>(a.n), bias = read<float>(a.n);
  a.x_bf16 = x.as_half(), a.x_f32 = x.as_single(), a.weight = weight.data(), a.bias = bias.data();
  a.out_bf16 = out.as_half(), a.out_u8 = out.as_codes();
  qsam2::layer_norm(a);
  out.answer();
}

void attention(std::istream& line) {
  qsam2::AttentionArgs a{};
  int out_kind;
  line >> a.batches >> a.heads >> a.queries >> a.keys >> a.d >> a.value_d >> a.scale >> a.int8_scores >> out_kind;
  line >> a.out.grid.scale >> a.out.grid.zero_point >> a.out.grid.high;
  const int64_t heads = a.batches * a.heads;
  const auto q = read<bf16>(heads * a.queries * a.d), k = read<bf16>(heads * a.keys * a.d);
  const auto v = read<bf16>(heads * a.keys * a.value_d);
  Values out(out_kind, heads * a.queries * a.value_d);
  a.q = {q.data(), a.heads * a.queries * a.d, a.queries * a.d, a.d};
  a.k = {k.data(), a.heads * a.keys * a.d, a.keys * a.d, a.d};
  a.v = {v.data(), a.heads * a.keys * a.value_d, a.keys * a.value_d, a.value_d};
  a.out.halves = out.as_half(), a.out.codes = out.as_codes();
  qsam2::attention(a);
  out.answer();
}

void window_attention(std::istream& line) {
  qsam2::WindowArgs a{};
  int out_kind;
  line >> a.b >> a.h >> a.w >> a.heads >> a.d >> a.window >> a.stride >> a.scale >> out_kind;
  line >> a.out.grid.scale >> a.out.grid.zero_point >> a.out.grid.high;
  const int64_t channels = 3 * a.heads * a.d;
  const auto qkv = read<bf16>(a.b * a.h * a.w * channels), pad = read<bf16>(channels);
  Values out(out_kind, a.b * (a.h / a.stride) * (a.w / a.stride) * a.heads * a.d);
  a.qkv = qkv.data(), a.pad = pad.data(), a.out.halves = out.as_half(), a.out.codes = out.as_codes();
  qsam2::window_attention(a);
  out.answer();
}

void rotate(std::istream& line) {
  qsam2::RotateArgs a{};
  int kind;
  line >> kind >> a.batches >> a.heads >> a.tokens >> a.d >> a.period >> a.rotated;
  const int64_t n = a.batches * a.heads * a.tokens * a.d;
  Values x = Values::from_input(kind, n), out(1, n);
  const auto frequencies = read<float>(a.period * a.d);
  a.x_bf16 = x.as_half(), a.x_f32 = x.as_single(), a.frequencies = frequencies.data(), a.out = out.as_half();
  a.token = a.d, a.head = a.tokens * a.d, a.batch = a.heads * a.head;
  qsam2::rotate(a);
  out.answer();
}

void pixels(std::istream& line) {
  qsam2::PixelsArgs a{};
  int kind, out_kind;
  line >> kind >> a.b >> a.h >> a.w >> a.k >> a.c >> out_kind;
  const int64_t n = a.b * a.h * a.w * a.k * a.k * a.c;
  Values x = Values::from_input(kind, n), out(out_kind, n);
  const auto bias = read<float>(a.c);
  a.x_bf16 = x.as_half(), a.x_f32 = x.as_single(), a.bias = bias.data();
  a.out_bf16 = out.as_half(), a.out_f32 = out.as_single();
  qsam2::pixels(a);
  out.answer();
}

void gelu_planes(std::istream& line) {
  qsam2::GeluPlanesArgs a{};
  int kind, out_kind;
  line >> kind >> a.planes >> a.b >> a.n >> a.c >> out_kind;
  Values x = Values::from_input(kind, a.b * a.n * a.c), out(out_kind, a.b * a.n * a.c);
  a.x_bf16 = x.as_half(), a.x_f32 = x.as_single(), a.out_bf16 = out.as_half(), a.out_f32 = out.as_single();
  qsam2::gelu_planes(a);
  out.answer();
}

}  // namespace

int main() try {
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::string name;
    line >> name;
    if (name == "pack") pack(line);
    else if (name == "gemm") gemm(line);
    else if (name == "quantize") quantize(line);
    else if (name == "layer_norm") layer_norm(line);
    else if (name == "attention") attention(line);
    else if (name == "window_attention") window_attention(line);
    else if (name == "rotate") rotate(line);
    else if (name == "pixels") pixels(line);
    else if (name == "gelu_planes") gelu_planes(line);
    else throw std::runtime_error("no kernel " + name);
    std::cout.flush();
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
