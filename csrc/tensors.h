// Tensors as the kernels want them: memory formats, dtypes, allocation.

#pragma once

#include "device.h"
#include "pass.h"

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace hires_gan {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As torch judges it: sides of 1 may have any stride.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) == 1) continue;
    if (x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// The format that results have: channels_last where x has it and is not contiguous as well.
inline MemoryFormat format_of(const Tensor& x) {
  return !x.is_contiguous() && is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_format(const Tensor& x, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast ? is_channels_last(x) : x.is_contiguous()) return x;
  return torch::stable::contiguous(x, format);
}

// Before a kernel is launched: another device's memory would end the process.
inline void check_device(const std::optional<Tensor>& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(!tensor || tensor->device() == x.device(), name, " has to be on the device of the other tensors");
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  return {x.sizes().begin(), x.sizes().end()};
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
}

inline ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls `function` with a value of the element type of x.
template <typename Function>
auto by_dtype(const Tensor& x, const Function& function) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return function(double{});
    case ScalarType::Float: return function(float{});
    case ScalarType::Half: return function(c10::Half{});
    case ScalarType::BFloat16: return function(c10::BFloat16{});
    default: STD_TORCH_CHECK(false, "float64, float32, float16 and bfloat16 are computed, and no other dtype");
  }
  return function(float{});
}

template <typename T>
Coefficients<T> coefficients(const std::optional<Tensor>& tensor, const Tensor& x, const char* name, double fallback) {
  Coefficients<T> result;
  result.fallback = static_cast<Accumulator<T>>(fallback);
  if (!tensor) return result;
  STD_TORCH_CHECK(tensor->is_contiguous(), name, " has to be contiguous");
  const ScalarType dtype = tensor->scalar_type();
  STD_TORCH_CHECK(dtype == x.scalar_type() || dtype == accumulation_type(x), name, " has another dtype than x");
  result.data = tensor->const_data_ptr();
  result.wide = dtype == accumulation_type(x);
  return result;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return in_format(*tensor, MemoryFormat::Contiguous);
}

template <typename A, typename Device>
void sum_chunks(const Device& device, const Tensor& partial, const Tensor& out, int64_t chunks) {
  SumChunks<A> kernel{static_cast<const A*>(partial.const_data_ptr()), static_cast<A*>(out.mutable_data_ptr()), chunks,
                      out.numel()};
  device.launch(kernel, kernel.blocks());
}

// Runs one pass from `in` to `out`, all in one format, and returns the partial sums [chunks, kSums, groups, channels].
template <typename Operation, typename Device, typename T = typename Operation::Element>
std::optional<Tensor> run_pass(const Device& device, const Operation& operation, const View& view,
                               const std::vector<Tensor>& in, const std::vector<Tensor>& out) {
  const int64_t across = view.channels_last ? view.channels : view.pixels;
  bool wide = across % kWidest<T> == 0 && (!view.channels_last || operation.aligned_rows());
  for (const Tensor& tensor : in) wide = wide && aligned(tensor.const_data_ptr(), 16);
  for (const Tensor& tensor : out) wide = wide && aligned(tensor.const_data_ptr(), 16);
  if constexpr (Operation::kNoise) wide = wide && aligned(operation.noise.data, 16);
  std::optional<Tensor> partial;
  const auto launch = [&](auto vector, auto last) {
    Pass<Operation, decltype(vector)::value, decltype(last)::value> pass{operation, {}, {}, nullptr, view, {}};
    pass.split = split(view, decltype(vector)::value, Operation::kSums > 0);
    for (int i = 0; i < Operation::kInputs; ++i) pass.in[i] = static_cast<const T*>(in[i].const_data_ptr());
    for (int i = 0; i < Operation::kOutputs; ++i) pass.out[i] = static_cast<T*>(out[i].mutable_data_ptr());
    if (Operation::kSums > 0) {
      const std::vector<int64_t> sizes{pass.split.chunks, Operation::kSums, view.groups, view.channels};
      partial = empty(out[0], sizes, accumulation_type(out[0]));
      pass.partial = static_cast<Accumulator<T>*>(partial->mutable_data_ptr());
    }
    device.launch(pass, pass.split.blocks);
  };
  using One = std::integral_constant<int, 1>;
  using Widest = std::integral_constant<int, kWidest<T>>;
  // Sums are kept for each channel that a thread sees: fewer of them leave room for more threads.
  using Deep = std::integral_constant<int, Operation::kSums ? std::min(kWidest<T>, 4) : kWidest<T>>;
  if (view.channels_last) {
    wide ? launch(Deep{}, std::true_type{}) : launch(One{}, std::true_type{});
  } else {
    wide ? launch(Widest{}, std::false_type{}) : launch(One{}, std::false_type{});
  }
  return partial;
}

}  // namespace hires_gan
