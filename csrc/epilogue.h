// What follows a modulated convolution, in one pass: y = clamp(gain * act(x d[n, c] + strength noise[n, p] + b[c])).

#pragma once

#include "activation.h"
#include "pass.h"
#include "tensors.h"

namespace hires_gan {

template <typename T>
struct Epilogue {
  using Element = T;
  using A = Accumulator<T>;
  struct Row {
    A factor, bias, strength;
  };
  static constexpr int kInputs = 1, kOutputs = 1, kSums = 0;
  static constexpr bool kNoise = true;

  Coefficients<T> demodulation, b, strength, noise;
  int64_t noise_per_sample;
  int64_t channels;
  Rectifier<A> rectifier;
  Clamp<T> clamp;

  HD int64_t noise_index(int64_t sample, int64_t pixel) const { return sample * noise_per_sample + pixel; }
  template <int kRows>
  HD void rows(int64_t sample, int64_t channel, Row (&rows)[kRows]) const {
    A factors[kRows], biases[kRows];
    demodulation.template fill<kRows>(sample * channels + channel, factors);
    b.template fill<kRows>(channel, biases);
    const A noise_strength = strength.at(0);
    UNROLL for (int i = 0; i < kRows; ++i) rows[i] = {factors[i], biases[i], noise_strength};
  }
  bool aligned_rows() const { return aligned(demodulation.data, 16) && aligned(b.data, 16); }
  HD void apply(const A (&in)[1], const Row& row, A noise_value, A (&)[1], T (&out)[1]) const {
    out[0] = clamp(rectifier.value(in[0] * row.factor + row.strength * noise_value + row.bias));
  }
};

// What the derivatives ask of the rectifier and the clamp, from the result y; Scaling is their place where there are
// neither, and y is not read.
template <typename T>
struct Bent {
  using A = Accumulator<T>;
  static constexpr int kReads = 1;

  Rectifier<A> rectifier;
  Clamp<T> clamp;

  HD A operator()(A value, const A* y) const {
    const A result = rectifier.derivative(value, rectifier.gain < 0 ? -*y : *y);
    return clamp.saturated(*y) ? A(0) : result;
  }
};

template <typename T>
struct Scaling {
  using A = Accumulator<T>;
  static constexpr int kReads = 0;

  A gain;

  HD A operator()(A value, const A*) const { return gain * value; }
};

// From dy, x and maybe y: dx, and per sample and channel the sums of g x, g and, behind a rectifier, g noise, where g
// is the gradient behind the bias.
template <typename T, typename Slope>
struct EpilogueGradient {
  using Element = T;
  using A = Accumulator<T>;
  using Row = A;
  static constexpr int kInputs = 2 + Slope::kReads, kOutputs = 1, kSums = 2 + Slope::kReads;
  static constexpr bool kNoise = Slope::kReads > 0;

  Coefficients<T> demodulation, noise;
  int64_t noise_per_sample;
  int64_t channels;
  Slope slope;

  HD int64_t noise_index(int64_t sample, int64_t pixel) const { return sample * noise_per_sample + pixel; }
  template <int kRows>
  HD void rows(int64_t sample, int64_t channel, Row (&factors)[kRows]) const {
    demodulation.template fill<kRows>(sample * channels + channel, factors);
  }
  bool aligned_rows() const { return aligned(demodulation.data, 16); }
  HD void apply(const A (&in)[kInputs], Row factor, A noise_value, A (&sums)[kSums], T (&out)[1]) const {
    const A g = slope(in[0], in + 2);
    sums[0] = g * in[1];
    sums[1] = g;
    if constexpr (kSums == 3) sums[2] = g * noise_value;
    out[0] = static_cast<T>(g * factor);
  }
};

// The gradient of that: from v, which arrives at dx, the coefficients that arrive at the sums, dy, x and maybe y: what
// belongs to dy and to x, and per sample and channel the sums of v g, which belong to the demodulation.
template <typename T, typename Slope>
struct EpilogueSecond {
  using Element = T;
  using A = Accumulator<T>;
  struct Row {
    A factor, by_x, by_one, by_noise;
  };
  static constexpr int kInputs = 3 + Slope::kReads, kOutputs = 2, kSums = 1;
  static constexpr bool kNoise = Slope::kReads > 0;

  Coefficients<T> demodulation, noise;
  int64_t noise_per_sample;
  int64_t channels;
  int64_t rows_in_all;  // samples * channels
  Slope slope;
  const A* arriving;  // [2 or 3, samples, channels]

  HD int64_t noise_index(int64_t sample, int64_t pixel) const { return sample * noise_per_sample + pixel; }
  template <int kRows>
  HD void rows(int64_t sample, int64_t channel, Row (&rows)[kRows]) const {
    const int64_t at = sample * channels + channel;
    A factors[kRows], values[3][kRows] = {};
    demodulation.template fill<kRows>(at, factors);
    UNROLL for (int i = 0; i < 2 + Slope::kReads; ++i) {
      const Vector<A, kRows> some = load<kRows>(arriving + i * rows_in_all + at);
      UNROLL for (int k = 0; k < kRows; ++k) values[i][k] = some.values[k];
    }
    UNROLL for (int k = 0; k < kRows; ++k) rows[k] = {factors[k], values[0][k], values[1][k], values[2][k]};
  }
  bool aligned_rows() const { return aligned(demodulation.data, 16) && aligned(arriving, 16); }
  HD void apply(const A (&in)[kInputs], const Row& row, A noise_value, A (&sums)[1], T (&out)[2]) const {
    const A v = in[0], dy = in[1], x = in[2];
    const A total = v * row.factor + x * row.by_x + row.by_one + row.by_noise * noise_value;
    const A g = slope(dy, in + 3);
    sums[0] = v * g;
    out[0] = static_cast<T>(slope(total, in + 3));
    out[1] = static_cast<T>(g * row.by_x);
  }
};

inline View view_of_samples(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions; 4 are allowed");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), format_of(x) == MemoryFormat::ChannelsLast};
}

inline void check_epilogue(const Tensor& x, const std::optional<Tensor>& demodulation,
                           const std::optional<Tensor>& noise) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  STD_TORCH_CHECK(!demodulation || sizes_of(*demodulation) == std::vector<int64_t>({n, c}),
                  "demodulation has to be [N, C]");
  STD_TORCH_CHECK(!noise || sizes_of(*noise) == std::vector<int64_t>({1, 1, h, w}) ||
                      sizes_of(*noise) == std::vector<int64_t>({n, 1, h, w}),
                  "noise has to be [N, 1, H, W] or [1, 1, H, W]");
}

inline int64_t pixels_per_sample(const std::optional<Tensor>& noise) {
  return noise && noise->size(0) > 1 ? noise->size(2) * noise->size(3) : 0;
}

inline Kind rectifier_kind(const std::string& act, double alpha) {
  const Kind kind = kind_of(act);
  STD_TORCH_CHECK(is_rectifier(kind) && (kind != Kind::lrelu || alpha >= 0),
                  "the epilogue knows linear, relu and lrelu with an alpha of 0 or more");
  return kind;
}

inline void check_alike(const Tensor& x, const std::vector<Tensor>& others) {
  for (const Tensor& tensor : others) {
    STD_TORCH_CHECK(sizes_of(tensor) == sizes_of(x), "dy, y, x and what arrives at dx have to have one shape");
    STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "dy, y, x and what arrives have to have one dtype");
  }
}

template <typename Device>
Tensor epilogue(const Tensor& x_in, const std::optional<Tensor>& demodulation_in, const std::optional<Tensor>& noise_in,
                const std::optional<Tensor>& strength_in, const std::optional<Tensor>& b_in, const std::string& act,
                double alpha, double gain, const std::optional<double>& clamp) {
  const MemoryFormat format = format_of(x_in);
  const Tensor x = in_format(x_in, format);
  const std::optional<Tensor> demodulation = contiguous(demodulation_in), noise = contiguous(noise_in);
  const std::optional<Tensor> strength = contiguous(strength_in), b = contiguous(b_in);
  const View view = view_of_samples(x);
  check_epilogue(x, demodulation, noise);
  STD_TORCH_CHECK(!b || (b->dim() == 1 && b->size(0) == view.channels), "b has to be [C]");
  STD_TORCH_CHECK(!strength || strength->numel() == 1, "noise_strength has to be one value");
  const Tensor y = empty(x, sizes_of(x), x.scalar_type(), format);
  if (x.numel() == 0) return y;
  check_device(demodulation, x, "demodulation");
  check_device(noise, x, "noise");
  check_device(strength, x, "noise_strength");
  check_device(b, x, "b");
  const Kind kind = rectifier_kind(act, alpha);
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    const Epilogue<T> operation{coefficients<T>(demodulation, x, "demodulation", 1),
                                coefficients<T>(b, x, "b", 0),
                                coefficients<T>(strength, x, "noise_strength", 1),
                                coefficients<T>(noise, x, "noise", 0),
                                pixels_per_sample(noise),
                                view.channels,
                                make_rectifier<Accumulator<T>>(kind, alpha, gain),
                                make_clamp<T>(limit_of(clamp))};
    run_pass(device, operation, view, {x}, {y});
  });
  return y;
}

// Calls `function` with what the derivatives ask of the activation. With noise, y is read in any case, since its sums
// are asked for.
template <typename T, typename Function>
void by_slope(Kind kind, double alpha, double gain, const std::optional<double>& clamp, bool noise,
              const Function& function) {
  using A = Accumulator<T>;
  if (kind == Kind::linear && !clamp && !noise) {
    function(Scaling<T>{static_cast<A>(gain)});
  } else {
    function(Bent<T>{make_rectifier<A>(kind, alpha, gain), make_clamp<T>(limit_of(clamp))});
  }
}

inline int64_t sums_of(Kind kind, const std::optional<double>& clamp, bool noise) {
  return kind == Kind::linear && !clamp && !noise ? 2 : 3;
}

// (dx, sums [3 or 2, N, C]): the sums over the pixels of g x, g and g noise, in the accumulation type; of the first two
// alone where there is no noise, and nothing but a gain.
template <typename Device>
std::tuple<Tensor, Tensor> epilogue_gradient(const Tensor& dy_in, const Tensor& y_in, const Tensor& x_in,
                                             const std::optional<Tensor>& demodulation_in,
                                             const std::optional<Tensor>& noise_in, const std::string& act,
                                             double alpha, double gain, const std::optional<double>& clamp) {
  const MemoryFormat format = format_of(x_in);
  const Tensor x = in_format(x_in, format), y = in_format(y_in, format), dy = in_format(dy_in, format);
  check_alike(x, {y, dy});
  const std::optional<Tensor> demodulation = contiguous(demodulation_in), noise = contiguous(noise_in);
  const View view = view_of_samples(x);
  check_epilogue(x, demodulation, noise);
  const Kind kind = rectifier_kind(act, alpha);
  const Tensor dx = empty(x, sizes_of(x), x.scalar_type(), format);
  Tensor sums = empty(x, {sums_of(kind, clamp, noise.has_value()), view.groups, view.channels}, accumulation_type(x));
  if (x.numel() == 0) {
    torch::stable::zero_(sums);
    return {dx, sums};
  }
  check_device(dy, x, "dy");
  check_device(y, x, "y");
  check_device(demodulation, x, "demodulation");
  check_device(noise, x, "noise");
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    by_slope<T>(kind, alpha, gain, clamp, noise.has_value(), [&](auto slope) {
      using Operation = EpilogueGradient<T, decltype(slope)>;
      const Operation operation{coefficients<T>(demodulation, x, "demodulation", 1),
                                coefficients<T>(noise, x, "noise", 0), pixels_per_sample(noise), view.channels, slope};
      std::vector<Tensor> in{dy, x};
      if (Operation::kInputs == 3) in.push_back(y);
      const std::optional<Tensor> partial = run_pass(device, operation, view, in, {dx});
      sum_chunks<Accumulator<T>>(device, *partial, sums, partial->size(0));
    });
  });
  return {dx, sums};
}

// (what belongs to dy, what belongs to x, [N, C] what belongs to the demodulation), from v, which arrives at dx, and
// what arrives at the sums.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor> epilogue_second(const Tensor& v_in, const Tensor& arriving_in, const Tensor& dy_in,
                                                   const Tensor& y_in, const Tensor& x_in,
                                                   const std::optional<Tensor>& demodulation_in,
                                                   const std::optional<Tensor>& noise_in, const std::string& act,
                                                   double alpha, double gain, const std::optional<double>& clamp) {
  const MemoryFormat format = format_of(x_in);
  const Tensor x = in_format(x_in, format), y = in_format(y_in, format), dy = in_format(dy_in, format);
  const Tensor v = in_format(v_in, format), arriving = in_format(arriving_in, MemoryFormat::Contiguous);
  check_alike(x, {y, dy, v});
  const std::optional<Tensor> demodulation = contiguous(demodulation_in), noise = contiguous(noise_in);
  const View view = view_of_samples(x);
  check_epilogue(x, demodulation, noise);
  const Kind kind = rectifier_kind(act, alpha);
  const int64_t terms = sums_of(kind, clamp, noise.has_value());
  STD_TORCH_CHECK(arriving.scalar_type() == accumulation_type(x) &&
                      sizes_of(arriving) == std::vector<int64_t>({terms, view.groups, view.channels}),
                  "d_sums has to have the shape and the dtype of the sums");
  const Tensor d_dy = empty(x, sizes_of(x), x.scalar_type(), format);
  const Tensor d_x = empty(x, sizes_of(x), x.scalar_type(), format);
  Tensor sums = empty(x, {view.groups, view.channels}, accumulation_type(x));
  if (x.numel() == 0) {
    torch::stable::zero_(sums);
    return {d_dy, d_x, sums};
  }
  for (const Tensor& tensor : {v, arriving, dy, y}) check_device(tensor, x, "what arrives");
  check_device(demodulation, x, "demodulation");
  check_device(noise, x, "noise");
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    by_slope<T>(kind, alpha, gain, clamp, noise.has_value(), [&](auto slope) {
      using Operation = EpilogueSecond<T, decltype(slope)>;
      const Operation operation{coefficients<T>(demodulation, x, "demodulation", 1),
                                coefficients<T>(noise, x, "noise", 0),
                                pixels_per_sample(noise),
                                view.channels,
                                view.groups * view.channels,
                                slope,
                                static_cast<const Accumulator<T>*>(arriving.const_data_ptr())};
      std::vector<Tensor> in{v, dy, x};
      if (Operation::kInputs == 4) in.push_back(y);
      const std::optional<Tensor> partial = run_pass(device, operation, view, in, {d_dy, d_x});
      sum_chunks<Accumulator<T>>(device, *partial, sums, partial->size(0));
    });
  });
  return {d_dy, d_x, sums};
}

}  // namespace hires_gan
