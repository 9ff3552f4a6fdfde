// Tensors through torch's stable interface, of which a library may use any torch from the one it was compiled for on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace qsam2::tensors {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using Order = std::vector<int64_t>;

// Sizes and tensors in messages.
inline std::ostream& print(std::ostream& to, const Sizes& sizes) {
  to << '[';
  for (size_t i = 0; i < sizes.size(); ++i) to << (i ? ", " : "") << sizes[i];
  return to << ']';
}
inline std::ostream& print(std::ostream& to, const Tensor& t) { return print(to << t.scalar_type() << ' ', t.sizes()); }
template <typename T>
std::ostream& print(std::ostream& to, const T& part) {
  return to << part;
}

template <typename... Parts>
void require(bool met, const Parts&... parts) {
  if (met) return;
  std::ostringstream message("qsam2: ", std::ios::ate);
  (print(message, parts), ...);
  throw std::runtime_error(message.str());
}

inline void check(const Tensor& t, ScalarType dtype, const char* name) {
  require(t.is_cpu() && t.scalar_type() == dtype && t.is_contiguous(), name, " must be a contiguous ", dtype,
          " tensor on the CPU, not ", t);
}

template <typename T>
const T* data(const Tensor& t) {
  return t.const_data_ptr<T>();
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return t.mutable_data_ptr<T>();
}
inline const bf16* bits(const Tensor& t) { return (const bf16*)data<torch::headeronly::BFloat16>(t); }
inline bf16* mutable_bits(const Tensor& t) { return (bf16*)mutable_data<torch::headeronly::BFloat16>(t); }

// The order in which dimensions lie in memory, the closest together last.
inline Order order_of(const Tensor& t) {
  Order order(t.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  return order;
}

// Whether a tensor lies in memory in this order and without gaps.
inline bool lies_in(const Order& order, const Tensor& t) {
  int64_t stride = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (t.size(*d) != 1 && t.stride(*d) != stride) return false;
    stride *= t.size(*d);
  }
  return true;
}

// As torch's C interface numbers it.
inline int32_t number_of(ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

inline std::vector<int64_t> contiguous_strides(const Sizes& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = (int64_t)sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes[d]);
  return strides;
}

// Uninitialized tensors on the CPU.
inline Tensor empty_strided(const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), number_of(dtype),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}
inline Tensor empty(const Sizes& sizes, ScalarType dtype) {
  return empty_strided(sizes, contiguous_strides(sizes), dtype);
}
inline Tensor empty_like(const Tensor& t, ScalarType dtype) { return empty_strided(t.sizes(), t.strides(), dtype); }

// The same in memory of pool.h, where that is worth it.
inline Tensor pooled(const Sizes& sizes, ScalarType dtype) {
  size_t bytes = aoti_torch_dtype_element_size(number_of(dtype));
  for (const int64_t size : sizes) bytes *= size;
  if (bytes < kWorthKeeping) return empty(sizes, dtype);
  const Block block = take_block(bytes);
  return torch::stable::from_blob(block.data, sizes, contiguous_strides(sizes), torch::headeronly::DeviceType::CPU,
                                  dtype, [block](void*) { give_block(block); });
}

}  // namespace qsam2::tensors
