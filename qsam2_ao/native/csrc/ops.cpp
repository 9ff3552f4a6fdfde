// The operators of torch.ops.qsam2 on the CPU: checks, allocation, and the kernels behind them.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "attention.h"
#include "elementwise.h"
#include "gemm.h"
#include "parallel.h"
#include "pool.h"
#include "rotary.h"
#include "upscale.h"

namespace {

using at::Tensor;
using qsam2::bf16;

const bf16* bits(const Tensor& t) { return (const bf16*)t.const_data_ptr<at::BFloat16>(); }
bf16* mutable_bits(const Tensor& t) { return (bf16*)t.data_ptr<at::BFloat16>(); }

void check(const Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == dtype && t.is_contiguous(), "qsam2: ", name,
              " must be a contiguous ", dtype, " tensor on the CPU, not ", t.toString(), " ", t.sizes());
}

void check_width(int64_t width) {
  TORCH_CHECK(width == 2 || width == 3 || width == 4 || width == 8, "qsam2: no kernel for ", width, " bits");
}

std::tuple<Tensor, Tensor> pack_weight(const Tensor& codes, int64_t width) {
  check(codes, at::kByte, "codes");
  TORCH_CHECK(codes.dim() == 2 && codes.size(1) % 4 == 0, "qsam2: codes must be [n, k] with k divisible by 4, not ",
              codes.sizes());
  check_width(width);
  Tensor out = at::zeros({qsam2::packed_bytes(codes.size(0), codes.size(1), width)}, codes.options());
  Tensor sums = at::empty({codes.size(0)}, codes.options().dtype(at::kInt));
  qsam2::pack(codes.const_data_ptr<uint8_t>(), codes.size(0), codes.size(1), width, out.data_ptr<uint8_t>(),
              sums.data_ptr<int32_t>());
  return {out, sums};
}

Tensor linear(const Tensor& x, const Tensor& weight, int64_t width, const Tensor& table, const Tensor& alpha,
              const Tensor& beta, const std::optional<Tensor>& residual, c10::string_view activation,
              at::ScalarType out_dtype, double out_scale, double out_zero_point, int64_t out_max) {
  check(x, at::kByte, "x");
  check(weight, at::kByte, "weight");
  check(table, at::kChar, "table");
  check(alpha, at::kFloat, "alpha");
  check(beta, at::kFloat, "beta");
  check_width(width);
  qsam2::GemmArgs args{};
  args.k = x.size(-1);
  args.n = alpha.numel();
  TORCH_CHECK(args.k > 0, "qsam2: a product with x of ", x.sizes());
  args.m = x.numel() / args.k;
  args.bits = width;
  TORCH_CHECK(args.k % 4 == 0 && weight.numel() == qsam2::packed_bytes(args.n, args.k, width) &&
                  beta.numel() == args.n && table.numel() == 16,
              "qsam2: a weight of ", weight.numel(), " bytes is not ", args.n, " x ", args.k, " of ", width, " bits");
  args.x = x.const_data_ptr<uint8_t>();
  args.weight = weight.const_data_ptr<uint8_t>();
  args.table = table.const_data_ptr<int8_t>();
  args.alpha = alpha.const_data_ptr<float>();
  args.beta = beta.const_data_ptr<float>();
  if (activation == "gelu") args.activation = qsam2::Activation::kGelu;
  else if (activation == "relu") args.activation = qsam2::Activation::kRelu;
  else TORCH_CHECK(activation == "none", "qsam2: unknown activation ", activation);
  auto shape = x.sizes().vec();
  shape.back() = args.n;
  Tensor kept;
  if (residual) {
    TORCH_CHECK(residual->sizes() == shape, "qsam2: the residual is ", residual->sizes(), ", the output ", shape);
    kept = residual->contiguous();
    if (kept.scalar_type() == at::kBFloat16) args.residual_bf16 = bits(kept);
    else args.residual_f32 = kept.const_data_ptr<float>();
  }
  Tensor out = qsam2::pooled(shape, x.options().dtype(out_dtype));
  if (out_dtype == at::kBFloat16) args.out_bf16 = mutable_bits(out);
  else if (out_dtype == at::kFloat) args.out_f32 = out.data_ptr<float>();
  else if (out_dtype == at::kByte) args.out_u8 = out.data_ptr<uint8_t>();
  else TORCH_CHECK(false, "qsam2: no output of ", out_dtype);
  args.grid = {(float)out_scale, (float)out_zero_point, (float)out_max};
  if (args.m) qsam2::gemm(args);
  return out;
}

Tensor quantize(const Tensor& x, double scale, double zero_point, int64_t max) {
  // Keeps the strides of a dense tensor, whatever their order (a permuted image, say).
  const Tensor dense = x.is_non_overlapping_and_dense() ? x : x.contiguous();
  Tensor out = at::empty_like(dense, dense.options().dtype(at::kByte));
  const qsam2::Grid grid{(float)scale, (float)zero_point, (float)max};
  const bool half = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(half || x.scalar_type() == at::kFloat, "qsam2: cannot quantize ", x.scalar_type());
  qsam2::quantize(half ? bits(dense) : nullptr, half ? nullptr : dense.const_data_ptr<float>(), x.numel(), grid,
                  out.data_ptr<uint8_t>());
  return out;
}

Tensor layer_norm(const Tensor& x_, const Tensor& weight, const Tensor& bias, double eps, at::ScalarType out_dtype,
                  double scale, double zero_point, int64_t max) {
  const Tensor x = x_.contiguous();
  check(weight, at::kFloat, "weight");
  check(bias, at::kFloat, "bias");
  qsam2::LayerNormArgs args{};
  args.n = x.size(-1);
  TORCH_CHECK(args.n > 0 && weight.numel() == args.n && bias.numel() == args.n, "qsam2: layer norm of ", args.n,
              " values with ", weight.numel(), " weights");
  args.rows = x.numel() / args.n;
  if (x.scalar_type() == at::kBFloat16) args.x_bf16 = bits(x);
  else args.x_f32 = x.const_data_ptr<float>();
  args.weight = weight.const_data_ptr<float>();
  args.bias = bias.const_data_ptr<float>();
  args.eps = eps;
  args.grid = {(float)scale, (float)zero_point, (float)max};
  Tensor out = qsam2::pooled(x.sizes(), x.options().dtype(out_dtype));
  if (out_dtype == at::kByte) args.out_u8 = out.data_ptr<uint8_t>();
  else args.out_bf16 = mutable_bits(out);
  qsam2::layer_norm(args);
  return out;
}

// Codes [B, H, W, C] -> [B, H', W', C * kh * kw up to a multiple of 4], kernel positions first; outside of the image
// and in the padding stands `fill`.
Tensor patches(const Tensor& x, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t fill) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kByte, "qsam2: patches of ", x.toString(), " ", x.sizes());
  const int64_t h = x.size(1), w = x.size(2), c = x.size(3);
  TORCH_CHECK(kh > 0 && kw > 0 && sh > 0 && sw > 0 && ph >= 0 && pw >= 0, "qsam2: patches of ", kh, " x ", kw,
              ", stride ", sh, " x ", sw, ", padding ", ph, " x ", pw);
  TORCH_CHECK(h + 2 * ph >= kh && w + 2 * pw >= kw, "qsam2: a kernel of ", kh, " x ", kw, " is larger than ", x.sizes());
  const int64_t rows = (h + 2 * ph - kh) / sh + 1, columns = (w + 2 * pw - kw) / sw + 1;
  const int64_t width = qsam2::round_up(c * kh * kw, 4);
  const Tensor image = x.contiguous();
  Tensor out = qsam2::pooled({x.size(0), rows, columns, width}, image.options());
  const uint8_t* in = image.const_data_ptr<uint8_t>();
  uint8_t* to = out.data_ptr<uint8_t>();
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

qsam2::Heads heads_of(const Tensor& t) { return {bits(t), t.stride(0), t.stride(1), t.stride(2)}; }

// q [B, heads, N, d], k [B, heads, M, d], v [B, heads, M, e] in bfloat16, any strides but contiguous rows ->
// [B, N, heads, e].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool int8_scores) {
  for (const Tensor* t : {&q, &k, &v})
    TORCH_CHECK(t->dim() == 4 && t->scalar_type() == at::kBFloat16 && (t->stride(3) == 1 || t->size(3) == 1) &&
                    t->size(0) == q.size(0) && t->size(1) == q.size(1) && (t == &v || t->size(3) == q.size(3)),
                "qsam2: attention of ", q.sizes(), ", ", k.sizes(), ", ", v.sizes(), " in ", t->scalar_type());
  // Sums of int8 products and what takes kUnsigned out of them stay below 2^31.
  TORCH_CHECK(q.size(3) > 0 && (!int8_scores || q.size(3) <= 1 << 17), "qsam2: attention of ", q.sizes(),
              int8_scores ? " as codes" : "");
  TORCH_CHECK(k.size(2) == v.size(2) && k.size(2) > 0, "qsam2: attention with ", k.size(2), " keys and ", v.size(2),
              " values");
  Tensor out = qsam2::pooled({q.size(0), q.size(2), q.size(1), v.size(3)}, q.options());
  qsam2::attention({heads_of(q), heads_of(k), heads_of(v), q.size(0), q.size(1), q.size(2), k.size(2), q.size(3),
                    v.size(3), (float)scale, int8_scores, mutable_bits(out)});
  return out;
}

Tensor window_attention(const Tensor& qkv, const Tensor& pad, int64_t heads, int64_t window, int64_t stride) {
  check(qkv, at::kBFloat16, "qkv");
  check(pad, at::kBFloat16, "pad");
  TORCH_CHECK(qkv.dim() == 4 && heads > 0 && qkv.size(3) > 0 && qkv.size(3) % (3 * heads) == 0 &&
                  pad.numel() == qkv.size(3) && window > 0 && stride > 0 && window % stride == 0,
              "qsam2: window attention of ", qkv.sizes(), " with ", heads, " heads, window ", window, ", stride ",
              stride);
  const int64_t d = qkv.size(3) / 3 / heads;
  Tensor out = qsam2::pooled({qkv.size(0), qkv.size(1) / stride, qkv.size(2) / stride, heads * d}, qkv.options());
  qsam2::window_attention({bits(qkv), bits(pad), qkv.size(0), qkv.size(1), qkv.size(2), heads, d, window, stride,
                           (float)(1.0 / std::sqrt((double)d)), mutable_bits(out)});
  return out;
}

// x [B, heads, M, d] in bfloat16 or float, any strides but contiguous rows; frequencies [N, d], cosine and sine in turn.
Tensor rotate(const Tensor& x, const Tensor& frequencies, int64_t rotated) {
  const bool half = x.scalar_type() == at::kBFloat16;
  check(frequencies, at::kFloat, "frequencies");
  TORCH_CHECK(x.dim() == 4 && (half || x.scalar_type() == at::kFloat) && x.size(3) % 2 == 0 && x.stride(3) == 1,
              "qsam2: cannot rotate ", x.toString(), " ", x.sizes());
  TORCH_CHECK(frequencies.dim() == 2 && frequencies.size(0) > 0 && frequencies.size(1) == x.size(3) && rotated >= 0 &&
                  rotated <= x.size(2) && rotated % frequencies.size(0) == 0,
              "qsam2: cannot rotate ", rotated, " of ", x.sizes(), " by ", frequencies.sizes());
  Tensor out = qsam2::pooled(x.sizes(), x.options().dtype(at::kBFloat16));
  qsam2::RotateArgs args{};
  if (half) args.x_bf16 = bits(x);
  else args.x_f32 = x.const_data_ptr<float>();
  args.batch = x.stride(0), args.head = x.stride(1), args.token = x.stride(2);
  args.batches = x.size(0), args.heads = x.size(1), args.tokens = x.size(2), args.d = x.size(3);
  args.frequencies = frequencies.const_data_ptr<float>();
  args.period = frequencies.size(0), args.rotated = rotated;
  args.out = mutable_bits(out);
  qsam2::rotate(args);
  return out;
}

// Products [B, H, W, stride * stride * C] in bfloat16 or float -> an image [B, H stride, W stride, C].
Tensor pixels(const Tensor& x, const Tensor& bias, int64_t stride, at::ScalarType out_dtype) {
  const bool half = x.scalar_type() == at::kBFloat16;
  check(x, half ? at::kBFloat16 : at::kFloat, "x");
  check(bias, at::kFloat, "bias");
  TORCH_CHECK(x.dim() == 4 && stride > 0 && x.size(3) == stride * stride * bias.numel(), "qsam2: ", x.sizes(),
              " are no ", stride, " x ", stride, " pixels of ", bias.numel(), " channels");
  TORCH_CHECK(out_dtype == at::kBFloat16 || out_dtype == at::kFloat, "qsam2: no output of ", out_dtype);
  Tensor out = qsam2::pooled({x.size(0), x.size(1) * stride, x.size(2) * stride, bias.numel()},
                             x.options().dtype(out_dtype));
  qsam2::PixelsArgs args{};
  if (half) args.x_bf16 = bits(x);
  else args.x_f32 = x.const_data_ptr<float>();
  if (out_dtype == at::kBFloat16) args.out_bf16 = mutable_bits(out);
  else args.out_f32 = out.data_ptr<float>();
  args.bias = bias.const_data_ptr<float>();
  args.b = x.size(0), args.h = x.size(1), args.w = x.size(2), args.k = stride, args.c = bias.numel();
  qsam2::pixels(args);
  return out;
}

// [B, C, H, W] in bfloat16 or float, any layout -> contiguous planes.
Tensor gelu_planes(const Tensor& x, at::ScalarType out_dtype) {
  const bool half = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(x.dim() == 4 && (half || x.scalar_type() == at::kFloat), "qsam2: GELU of ", x.toString(), " ", x.sizes());
  TORCH_CHECK(out_dtype == at::kBFloat16 || out_dtype == at::kFloat, "qsam2: no output of ", out_dtype);
  qsam2::GeluPlanesArgs args{};
  args.planes = !x.is_contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor dense = args.planes ? x.contiguous() : x;
  if (half) args.x_bf16 = bits(dense);
  else args.x_f32 = dense.const_data_ptr<float>();
  args.b = x.size(0), args.c = x.size(1), args.n = x.size(2) * x.size(3);
  Tensor out = qsam2::pooled(x.sizes(), x.options().dtype(out_dtype));
  if (out_dtype == at::kBFloat16) args.out_bf16 = mutable_bits(out);
  else args.out_f32 = out.data_ptr<float>();
  qsam2::gelu_planes(args);
  return out;
}

// Declared in ops.py.
TORCH_LIBRARY_IMPL(qsam2, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
  m.impl("quantize", quantize);
  m.impl("layer_norm", layer_norm);
  m.impl("patches", patches);
  m.impl("attention", attention);
  m.impl("window_attention", window_attention);
  m.impl("rotate", rotate);
  m.impl("pixels", pixels);
  m.impl("gelu_planes", gelu_planes);
}

// It takes no tensor that would say where it runs.
TORCH_LIBRARY_IMPL(qsam2, CompositeExplicitAutograd, m) { m.impl("trim_pool", qsam2::trim_pool); }

}  // namespace
