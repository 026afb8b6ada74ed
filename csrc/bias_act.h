// y = clamp(gain * act(x + b)), and u * gain * act^(k)(x + b) where y is not clamped: every derivative of it.

#pragma once

#include "activation.h"
#include "pass.h"
#include "tensors.h"

namespace hires_gan {

template <typename T>
struct RectifyBiased {
  using Element = T;
  using A = Accumulator<T>;
  using Row = A;
  static constexpr int kInputs = 1, kOutputs = 1, kSums = 0;
  static constexpr bool kNoise = false;

  Coefficients<T> b;
  Rectifier<A> rectifier;
  Clamp<T> clamp;

  template <int kRows>
  HD void rows(int64_t, int64_t channel, Row (&biases)[kRows]) const {
    b.template fill<kRows>(channel, biases);
  }
  bool aligned_rows() const { return aligned(b.data, 16); }
  HD void apply(const A (&in)[1], Row bias, A, A (&)[1], T (&out)[1]) const {
    out[0] = clamp(rectifier.value(in[0] + bias));
  }
};

template <typename T>
struct ActivateBiased {
  using Element = T;
  using A = Accumulator<T>;
  using Row = A;
  static constexpr int kInputs = 1, kOutputs = 1, kSums = 0;
  static constexpr bool kNoise = false;

  Coefficients<T> b;
  Smooth<A> act;
  A gain;
  Clamp<T> clamp;

  template <int kRows>
  HD void rows(int64_t, int64_t channel, Row (&biases)[kRows]) const {
    b.template fill<kRows>(channel, biases);
  }
  bool aligned_rows() const { return aligned(b.data, 16); }
  HD void apply(const A (&in)[1], Row bias, A, A (&)[1], T (&out)[1]) const {
    out[0] = clamp(gain * act.value(in[0] + bias));
  }
};

// The first derivative from the result; of a rectifier with a slope of 0 or more only. Both derivatives always sum, asked
// or not: it costs next to nothing, and halves what has to be compiled.
template <typename T>
struct RectifierGradient {
  using Element = T;
  using A = Accumulator<T>;
  struct Row {};
  static constexpr int kInputs = 2, kOutputs = 1, kSums = 1;
  static constexpr bool kNoise = false;

  Rectifier<A> rectifier;
  Clamp<T> clamp;

  template <int kRows>
  HD void rows(int64_t, int64_t, Row (&)[kRows]) const {}
  bool aligned_rows() const { return true; }
  HD void apply(const A (&in)[2], Row, A, A (&sum)[1], T (&out)[1]) const {
    const A y = in[1];
    const A slope = rectifier.derivative(in[0], rectifier.gain < 0 ? -y : y);
    const A value = clamp.saturated(y) ? A(0) : slope;
    sum[0] = value;
    out[0] = static_cast<T>(value);
  }
};

// A derivative of any order from the input.
template <typename T>
struct ActivationDerivative {
  using Element = T;
  using A = Accumulator<T>;
  using Row = A;
  static constexpr int kInputs = 2, kOutputs = 1, kSums = 1;
  static constexpr bool kNoise = false;

  Coefficients<T> b;
  Smooth<A> act;
  A gain;
  Clamp<T> clamp;

  template <int kRows>
  HD void rows(int64_t, int64_t channel, Row (&biases)[kRows]) const {
    b.template fill<kRows>(channel, biases);
  }
  bool aligned_rows() const { return aligned(b.data, 16); }
  HD void apply(const A (&in)[2], Row bias, A, A (&sum)[1], T (&out)[1]) const {
    const A v = in[1] + bias;
    const bool clamped = clamp.limit == clamp.limit;
    const bool zero = clamped && clamp.saturated(static_cast<A>(static_cast<T>(gain * act.value(v))));
    const A value = zero ? A(0) : in[0] * (gain * act.derivative(v));
    sum[0] = value;
    out[0] = static_cast<T>(value);
  }
};

// Where the values of one b lie in the memory of x: in the order of the strides, [groups, channels, pixels].
inline View view_along(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, bool per_channel) {
  if (!b && !per_channel) return {1, 1, x.numel(), false};
  STD_TORCH_CHECK(dim >= 0 && dim < x.dim(), "dim is ", dim, "; 0 to ", x.dim() - 1, " are allowed");
  const int64_t channels = x.size(dim);
  STD_TORCH_CHECK(!b || (b->dim() == 1 && b->size(0) == channels), "b has to have one value for each of the ",
                  channels, " entries of x along dim ", dim);
  std::vector<int> order{0, 2, 3, 1};
  if (format_of(x) == MemoryFormat::Contiguous) {
    order.resize(x.dim());
    for (int i = 0; i < x.dim(); ++i) order[i] = i;
  }
  int64_t before = 1, behind = 1;
  bool seen = false;
  for (const int at : order) {
    if (at == dim) seen = true;
    else (seen ? behind : before) *= x.size(at);
  }
  if (behind == 1) return {1, channels, before, true};
  return {before, channels, behind, false};
}

template <typename Device>
Tensor bias_act(const Tensor& x_in, const std::optional<Tensor>& b_in, int64_t dim, const std::string& act,
                double alpha, double gain, const std::optional<double>& clamp) {
  const MemoryFormat format = format_of(x_in);
  const Tensor x = in_format(x_in, format);
  const std::optional<Tensor> b = contiguous(b_in);
  const Tensor y = empty(x, sizes_of(x), x.scalar_type(), format);
  const View view = view_along(x, b, dim, false);
  if (x.numel() == 0) return y;
  check_device(b, x, "b");
  const Kind kind = kind_of(act);
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Coefficients<T> bias = coefficients<T>(b, x, "b", 0);
    const Clamp<T> limit = make_clamp<T>(limit_of(clamp));
    if (is_rectifier(kind)) {
      run_pass(device, RectifyBiased<T>{bias, make_rectifier<A>(kind, alpha, gain), limit}, view, {x}, {y});
    } else {
      const ActivateBiased<T> operation{bias, make_smooth<A>(kind, 0, alpha), static_cast<A>(gain), limit};
      run_pass(device, operation, view, {x}, {y});
    }
  });
  return y;
}

// Returns the partial sums.
template <typename T, typename Device>
std::optional<Tensor> run_derivative(const Device& device, const View& view, const Tensor& u, const Tensor& saved,
                                     const Coefficients<T>& b, Kind kind, double alpha, double gain, Clamp<T> clamp,
                                     int64_t order, bool from_output, const Tensor& out) {
  using A = Accumulator<T>;
  if (!from_output) {
    STD_TORCH_CHECK(order >= 1, "order is ", order, "; 1 to ", kMaxOrder, " are allowed");
    const ActivationDerivative<T> operation{b, make_smooth<A>(kind, order, alpha), static_cast<A>(gain), clamp};
    return run_pass(device, operation, view, {u, saved}, {out});
  }
  STD_TORCH_CHECK(order == 1 && is_rectifier(kind) && (kind != Kind::lrelu || alpha >= 0),
                  "only the first derivative of a rectifier with a slope of 0 or more is seen in its result");
  const Rectifier<A> rectifier = make_rectifier<A>(kind, alpha, gain);
  return run_pass(device, RectifierGradient<T>{rectifier, clamp}, view, {u, saved}, {out});
}

// u * d^order/dv^order of bias_act at the saved input (or, with from_output, at the saved result), and if asked its
// sums over all but dim, in the accumulation type.
template <typename Device>
std::tuple<Tensor, Tensor> bias_act_derivative(const Tensor& u_in, const Tensor& saved_in,
                                               const std::optional<Tensor>& b_in, int64_t dim, const std::string& act,
                                               double alpha, double gain, const std::optional<double>& clamp,
                                               int64_t order, bool from_output, bool sum) {
  const MemoryFormat format = format_of(saved_in);
  const Tensor saved = in_format(saved_in, format), u = in_format(u_in, format);
  STD_TORCH_CHECK(sizes_of(u) == sizes_of(saved) && u.scalar_type() == saved.scalar_type(),
                  "u has to have the shape and the dtype of what was saved");
  const std::optional<Tensor> b = contiguous(b_in);
  const Tensor out = empty(saved, sizes_of(saved), saved.scalar_type(), format);
  const View view = view_along(saved, b, dim, sum);
  Tensor sums = empty(saved, {sum ? view.channels : 0}, accumulation_type(saved));
  if (saved.numel() == 0) {
    if (sum) torch::stable::zero_(sums);
    return {out, sums};
  }
  check_device(u, saved, "u");
  check_device(b, saved, "b");
  const Kind kind = kind_of(act);
  const Device device(saved);
  by_dtype(saved, [&](auto element) {
    using T = decltype(element);
    const std::optional<Tensor> partial =
        run_derivative<T>(device, view, u, saved, coefficients<T>(b, saved, "b", 0), kind, alpha, gain,
                          make_clamp<T>(limit_of(clamp)), order, from_output, out);
    if (sum) sum_chunks<Accumulator<T>>(device, *partial, sums, partial->size(0) * view.groups);
  });
  return {out, sums};
}

}  // namespace hires_gan
