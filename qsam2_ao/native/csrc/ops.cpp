// The operators of torch.ops.qsam2 on the CPU: checks, allocation, and the kernels behind them.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "attention.h"
#include "elementwise.h"
#include "gemm.h"
#include "parallel.h"
#include "pool.h"
#include "rotary.h"
#include "tensors.h"
#include "upscale.h"

namespace {

using namespace qsam2::tensors;

void check_width(int64_t width) {
  require(width == 2 || width == 3 || width == 4 || width == 8, "no kernel for ", width, " bits");
}

std::tuple<Tensor, Tensor> pack_weight(const Tensor& codes, int64_t width) {
  check(codes, ScalarType::Byte, "codes");
  require(codes.dim() == 2 && codes.size(1) % 4 == 0, "codes must be [n, k] with k divisible by 4, not ",
          codes.sizes());
  check_width(width);
  const int64_t bytes = qsam2::packed_bytes(codes.size(0), codes.size(1), width);
  Tensor out = empty({bytes}, ScalarType::Byte), sums = empty({codes.size(0)}, ScalarType::Int);
  uint8_t* packed = mutable_data<uint8_t>(out);
  std::memset(packed, 0, bytes);
  qsam2::pack(data<uint8_t>(codes), codes.size(0), codes.size(1), width, packed, mutable_data<int32_t>(sums));
  return {out, sums};
}

// What a handle holds, which is freed. (torch's own conversion to std::string leaks it.)
std::string taken(StringHandle handle) {
  const std::unique_ptr<std::remove_pointer_t<StringHandle>, void (*)(StringHandle)> owner(
      handle, [](StringHandle h) { torch_delete_string(h); });
  size_t length = 0;
  const char* text = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  return std::string(text, length);
}

Tensor linear(const Tensor& x, const Tensor& weight, int64_t width, const Tensor& table, const Tensor& alpha,
              const Tensor& beta, const std::optional<Tensor>& residual, StringHandle named, ScalarType out_dtype,
              double out_scale, double out_zero_point, int64_t out_max) {
  const std::string activation = taken(named);
  check(x, ScalarType::Byte, "x");
  check(weight, ScalarType::Byte, "weight");
  check(table, ScalarType::Char, "table");
  check(alpha, ScalarType::Float, "alpha");
  check(beta, ScalarType::Float, "beta");
  check_width(width);
  qsam2::GemmArgs args{};
  args.k = x.size(-1);
  args.n = alpha.numel();
  require(args.k > 0, "a product with x of ", x.sizes());
  args.m = x.numel() / args.k;
  args.bits = width;
  require(args.k % 4 == 0 && weight.numel() == qsam2::packed_bytes(args.n, args.k, width) &&
              beta.numel() == args.n && table.numel() == 16,
          "a weight of ", weight.numel(), " bytes is not ", args.n, " x ", args.k, " of ", width, " bits");
  args.x = data<uint8_t>(x);
  args.weight = data<uint8_t>(weight);
  args.table = data<int8_t>(table);
  args.alpha = data<float>(alpha);
  args.beta = data<float>(beta);
  if (activation == "gelu") args.activation = qsam2::Activation::kGelu;
  else if (activation == "relu") args.activation = qsam2::Activation::kRelu;
  else require(activation == "none", "unknown activation ", activation);
  auto shape = x.sizes().vec();
  shape.back() = args.n;
  Tensor kept;
  if (residual) {
    require(residual->sizes() == shape, "the residual is ", residual->sizes(), ", the output ", Sizes(shape));
    kept = torch::stable::contiguous(*residual);
    if (kept.scalar_type() == ScalarType::BFloat16) args.residual_bf16 = bits(kept);
    else args.residual_f32 = data<float>(kept);
  }
  Tensor out = pooled(shape, out_dtype);
  if (out_dtype == ScalarType::BFloat16) args.out_bf16 = mutable_bits(out);
  else if (out_dtype == ScalarType::Float) args.out_f32 = mutable_data<float>(out);
  else if (out_dtype == ScalarType::Byte) args.out_u8 = mutable_data<uint8_t>(out);
  else require(false, "no output of ", out_dtype);
  args.grid = {(float)out_scale, (float)out_zero_point, (float)out_max};
  if (args.m) qsam2::gemm(args);
  return out;
}

Tensor quantize(const Tensor& x, double scale, double zero_point, int64_t max) {
  // Keeps the strides of a dense tensor, whatever their order (a permuted image, say).
  const Tensor dense = lies_in(order_of(x), x) ? x : torch::stable::contiguous(x);
  Tensor out = empty_like(dense, ScalarType::Byte);
  const qsam2::Grid grid{(float)scale, (float)zero_point, (float)max};
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  require(half || x.scalar_type() == ScalarType::Float, "cannot quantize ", x.scalar_type());
  qsam2::quantize(half ? bits(dense) : nullptr, half ? nullptr : data<float>(dense), x.numel(), grid,
                  mutable_data<uint8_t>(out));
  return out;
}

Tensor layer_norm(const Tensor& x_, const Tensor& weight, const Tensor& bias, double eps, ScalarType out_dtype,
                  double scale, double zero_point, int64_t max) {
  const Tensor x = torch::stable::contiguous(x_);
  check(weight, ScalarType::Float, "weight");
  check(bias, ScalarType::Float, "bias");
  qsam2::LayerNormArgs args{};
  args.n = x.size(-1);
  require(args.n > 0 && weight.numel() == args.n && bias.numel() == args.n, "layer norm of ", args.n, " values with ",
          weight.numel(), " weights");
  args.rows = x.numel() / args.n;
  if (x.scalar_type() == ScalarType::BFloat16) args.x_bf16 = bits(x);
  else args.x_f32 = data<float>(x);
  args.weight = data<float>(weight);
  args.bias = data<float>(bias);
  args.eps = eps;
  args.grid = {(float)scale, (float)zero_point, (float)max};
  Tensor out = pooled(x.sizes(), out_dtype);
  if (out_dtype == ScalarType::Byte) args.out_u8 = mutable_data<uint8_t>(out);
  else args.out_bf16 = mutable_bits(out);
  qsam2::layer_norm(args);
  return out;
}

// Codes [B, H, W, C] -> [B, H', W', C * kh * kw up to a multiple of 4], kernel positions first; outside of the image
// and in the padding stands `fill`.
Tensor patches(const Tensor& x, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t fill) {
  require(x.dim() == 4 && x.scalar_type() == ScalarType::Byte, "patches of ", x);
  const int64_t h = x.size(1), w = x.size(2), c = x.size(3);
  require(kh > 0 && kw > 0 && sh > 0 && sw > 0 && ph >= 0 && pw >= 0, "patches of ", kh, " x ", kw, ", stride ", sh,
          " x ", sw, ", padding ", ph, " x ", pw);
  require(h + 2 * ph >= kh && w + 2 * pw >= kw, "a kernel of ", kh, " x ", kw, " is larger than ", x.sizes());
  const int64_t rows = (h + 2 * ph - kh) / sh + 1, columns = (w + 2 * pw - kw) / sw + 1;
  const int64_t width = qsam2::round_up(c * kh * kw, 4);
  const Tensor image = torch::stable::contiguous(x);
  Tensor out = pooled({x.size(0), rows, columns, width}, image.scalar_type());
  const uint8_t* in = data<uint8_t>(image);
  uint8_t* to = mutable_data<uint8_t>(out);
  qsam2::parallel(x.size(0) * rows, qsam2::worth_a_thread(8.0 * columns * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows, top = i % rows * sh - ph;
      for (int64_t j = 0; j < columns; ++j) {
        uint8_t* patch = to + (i * columns + j) * width;
        const int64_t left = j * sw - pw, before = std::clamp<int64_t>(-left, 0, kw);
        const int64_t after = std::clamp<int64_t>(w - left, before, kw);
        for (int64_t y = 0; y < kh; ++y, patch += kw * c) {
          const bool inside = top + y >= 0 && top + y < h;
          const int64_t from = inside ? before : kw, until = inside ? after : kw;
          std::memset(patch, fill, from * c);
          if (until > from)
            std::memcpy(patch + from * c, in + ((b * h + top + y) * w + left + from) * c, (until - from) * c);
          std::memset(patch + until * c, fill, (kw - until) * c);
        }
        std::memset(patch, fill, width - kh * kw * c);
      }
    }
  });
  return out;
}

// Where attention writes.
qsam2::Rounded rounded(const Tensor& out, double scale, double zero_point, double high) {
  const ScalarType dtype = out.scalar_type();
  require(dtype == ScalarType::BFloat16 || dtype == ScalarType::Byte, "no output of ", dtype);
  qsam2::Rounded to;
  if (dtype == ScalarType::Byte) to.codes = mutable_data<uint8_t>(out);
  else to.halves = mutable_bits(out);
  to.grid = {(float)scale, (float)zero_point, (float)high};
  return to;
}

qsam2::Heads heads_of(const Tensor& t) { return {bits(t), t.stride(0), t.stride(1), t.stride(2)}; }

// q [B, heads, N, d], k [B, heads, M, d], v [B, heads, M, e] in bfloat16, any strides but contiguous rows ->
// [B, N, heads, e] in bfloat16 or as codes.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool int8_scores,
                 ScalarType out_dtype, double out_scale, double out_zero_point, int64_t out_max) {
  for (const Tensor* t : {&q, &k, &v})
    require(t->dim() == 4 && t->scalar_type() == ScalarType::BFloat16 && (t->stride(3) == 1 || t->size(3) == 1) &&
                t->size(0) == q.size(0) && t->size(1) == q.size(1) && (t == &v || t->size(3) == q.size(3)),
            "attention of ", q.sizes(), ", ", k.sizes(), ", ", v.sizes(), " in ", t->scalar_type());
  // Sums of int8 products and what takes kUnsigned out of them stay below 2^31.
  require(q.size(3) > 0 && (!int8_scores || q.size(3) <= 1 << 17), "attention of ", q.sizes(),
          int8_scores ? " as codes" : "");
  require(k.size(2) == v.size(2) && k.size(2) > 0, "attention with ", k.size(2), " keys and ", v.size(2), " values");
  Tensor out = pooled({q.size(0), q.size(2), q.size(1), v.size(3)}, out_dtype);
  qsam2::attention({heads_of(q), heads_of(k), heads_of(v), q.size(0), q.size(1), q.size(2), k.size(2), q.size(3),
                    v.size(3), (float)scale, int8_scores, rounded(out, out_scale, out_zero_point, out_max)});
  return out;
}

Tensor window_attention(const Tensor& qkv, const Tensor& pad, int64_t heads, int64_t window, int64_t stride,
                        ScalarType out_dtype, double out_scale, double out_zero_point, int64_t out_max) {
  check(qkv, ScalarType::BFloat16, "qkv");
  check(pad, ScalarType::BFloat16, "pad");
  require(qkv.dim() == 4 && heads > 0 && qkv.size(3) > 0 && qkv.size(3) % (3 * heads) == 0 &&
              pad.numel() == qkv.size(3) && window > 0 && stride > 0 && window % stride == 0,
          "window attention of ", qkv.sizes(), " with ", heads, " heads, window ", window, ", stride ", stride);
  const int64_t d = qkv.size(3) / 3 / heads;
  Tensor out = pooled({qkv.size(0), qkv.size(1) / stride, qkv.size(2) / stride, heads * d}, out_dtype);
  qsam2::window_attention({bits(qkv), bits(pad), qkv.size(0), qkv.size(1), qkv.size(2), heads, d, window, stride,
                           (float)(1.0 / std::sqrt((double)d)), rounded(out, out_scale, out_zero_point, out_max)});
  return out;
}

// x [B, heads, M, d] in bfloat16 or float, any strides but contiguous rows; frequencies [N, d], cosine and sine in turn.
Tensor rotate(const Tensor& x, const Tensor& frequencies, int64_t rotated) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  check(frequencies, ScalarType::Float, "frequencies");
  require(x.dim() == 4 && (half || x.scalar_type() == ScalarType::Float) && x.size(3) % 2 == 0 && x.stride(3) == 1,
          "cannot rotate ", x);
  require(frequencies.dim() == 2 && frequencies.size(0) > 0 && frequencies.size(1) == x.size(3) && rotated >= 0 &&
              rotated <= x.size(2) && rotated % frequencies.size(0) == 0,
          "cannot rotate ", rotated, " of ", x.sizes(), " by ", frequencies.sizes());
  Tensor out = pooled(x.sizes(), ScalarType::BFloat16);
  qsam2::RotateArgs args{};
  if (half) args.x_bf16 = bits(x);
  else args.x_f32 = data<float>(x);
  args.batch = x.stride(0), args.head = x.stride(1), args.token = x.stride(2);
  args.batches = x.size(0), args.heads = x.size(1), args.tokens = x.size(2), args.d = x.size(3);
  args.frequencies = data<float>(frequencies);
  args.period = frequencies.size(0), args.rotated = rotated;
  args.out = mutable_bits(out);
  qsam2::rotate(args);
  return out;
}

// Products [B, H, W, stride * stride * C] in bfloat16 or float -> an image [B, H stride, W stride, C].
Tensor pixels(const Tensor& x, const Tensor& bias, int64_t stride, ScalarType out_dtype) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  check(x, half ? ScalarType::BFloat16 : ScalarType::Float, "x");
  check(bias, ScalarType::Float, "bias");
  require(x.dim() == 4 && stride > 0 && x.size(3) == stride * stride * bias.numel(), x.sizes(),
          " are no ", stride, " x ", stride, " pixels of ", bias.numel(), " channels");
  require(out_dtype == ScalarType::BFloat16 || out_dtype == ScalarType::Float, "no output of ", out_dtype);
  Tensor out = pooled({x.size(0), x.size(1) * stride, x.size(2) * stride, bias.numel()}, out_dtype);
  qsam2::PixelsArgs args{};
  if (half) args.x_bf16 = bits(x);
  else args.x_f32 = data<float>(x);
  if (out_dtype == ScalarType::BFloat16) args.out_bf16 = mutable_bits(out);
  else args.out_f32 = mutable_data<float>(out);
  args.bias = data<float>(bias);
  args.b = x.size(0), args.h = x.size(1), args.w = x.size(2), args.k = stride, args.c = bias.numel();
  qsam2::pixels(args);
  return out;
}

// [B, C, H, W] in bfloat16 or float, any layout -> contiguous planes.
Tensor gelu_planes(const Tensor& x, ScalarType out_dtype) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  require(x.dim() == 4 && (half || x.scalar_type() == ScalarType::Float), "GELU of ", x);
  require(out_dtype == ScalarType::BFloat16 || out_dtype == ScalarType::Float, "no output of ", out_dtype);
  qsam2::GeluPlanesArgs args{};
  args.planes = !lies_in({0, 2, 3, 1}, x);
  const Tensor dense = args.planes ? torch::stable::contiguous(x) : x;
  if (half) args.x_bf16 = bits(dense);
  else args.x_f32 = data<float>(dense);
  args.b = x.size(0), args.c = x.size(1), args.n = x.size(2) * x.size(3);
  Tensor out = pooled(x.sizes(), out_dtype);
  if (out_dtype == ScalarType::BFloat16) args.out_bf16 = mutable_bits(out);
  else args.out_f32 = mutable_data<float>(out);
  qsam2::gelu_planes(args);
  return out;
}

// Declared in ops.py.
STABLE_TORCH_LIBRARY_IMPL(qsam2, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("patches", TORCH_BOX(&patches));
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("window_attention", TORCH_BOX(&window_attention));
  m.impl("rotate", TORCH_BOX(&rotate));
  m.impl("pixels", TORCH_BOX(&pixels));
  m.impl("gelu_planes", TORCH_BOX(&gelu_planes));
}

// It takes no tensor that would say where it runs.
STABLE_TORCH_LIBRARY_IMPL(qsam2, CompositeExplicitAutograd, m) { m.impl("trim_pool", TORCH_BOX(&qsam2::trim_pool)); }

}  // namespace
