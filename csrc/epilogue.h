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
  static constexpr int kInputs = 1, kSums = 0;
  static constexpr bool kNoise = true;

  Coefficients<T> demodulation, b, strength, noise;
  int64_t noise_per_sample;
  int64_t channels;
  Rectifier<A> rectifier;
  Clamp<T> clamp;

  HD int64_t noise_index(int64_t sample, int64_t pixel) const { return sample * noise_per_sample + pixel; }
  HD Row row(int64_t sample, int64_t channel) const {
    return {demodulation.at(sample * channels + channel), b.at(channel), strength.at(0)};
  }
  HD T apply(const A (&in)[1], const Row& row, A noise_value, A (&)[1]) const {
    return clamp(rectifier.value(in[0] * row.factor + row.strength * noise_value + row.bias));
  }
};

// From dy, y and x: dx, and per sample and channel the sums of g x, g and g noise, where g is the gradient behind the
// bias.
template <typename T>
struct EpilogueGradient {
  using Element = T;
  using A = Accumulator<T>;
  using Row = A;
  static constexpr int kInputs = 3, kSums = 3;
  static constexpr bool kNoise = true;

  Coefficients<T> demodulation, noise;
  int64_t noise_per_sample;
  int64_t channels;
  Rectifier<A> rectifier;
  Clamp<T> clamp;

  HD int64_t noise_index(int64_t sample, int64_t pixel) const { return sample * noise_per_sample + pixel; }
  HD Row row(int64_t sample, int64_t channel) const { return demodulation.at(sample * channels + channel); }
  HD T apply(const A (&in)[3], Row factor, A noise_value, A (&sums)[3]) const {
    const A y = in[1];
    const A g = clamp.saturated(y) ? A(0) : rectifier.derivative(in[0], rectifier.gain < 0 ? -y : y);
    sums[0] = g * in[2];
    sums[1] = g;
    sums[2] = g * noise_value;
    return static_cast<T>(g * factor);
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
    run_pass(device, operation, view, {x}, y);
  });
  return y;
}

// (dx, sums [3, N, C]): the sums over the pixels of g x, g and g noise, in the accumulation type.
template <typename Device>
std::tuple<Tensor, Tensor> epilogue_gradient(const Tensor& dy_in, const Tensor& y_in, const Tensor& x_in,
                                             const std::optional<Tensor>& demodulation_in,
                                             const std::optional<Tensor>& noise_in, const std::string& act,
                                             double alpha, double gain, const std::optional<double>& clamp) {
  const MemoryFormat format = format_of(x_in);
  const Tensor x = in_format(x_in, format), y = in_format(y_in, format), dy = in_format(dy_in, format);
  STD_TORCH_CHECK(sizes_of(y) == sizes_of(x) && sizes_of(dy) == sizes_of(x), "dy, y and x have to have one shape");
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && dy.scalar_type() == x.scalar_type(),
                  "dy, y and x have to have one dtype");
  const std::optional<Tensor> demodulation = contiguous(demodulation_in), noise = contiguous(noise_in);
  const View view = view_of_samples(x);
  check_epilogue(x, demodulation, noise);
  const Tensor dx = empty(x, sizes_of(x), x.scalar_type(), format);
  Tensor sums = empty(x, {3, view.groups, view.channels}, accumulation_type(x));
  if (x.numel() == 0) {
    torch::stable::zero_(sums);
    return {dx, sums};
  }
  check_device(dy, x, "dy");
  check_device(y, x, "y");
  check_device(demodulation, x, "demodulation");
  check_device(noise, x, "noise");
  const Kind kind = rectifier_kind(act, alpha);
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    const EpilogueGradient<T> operation{coefficients<T>(demodulation, x, "demodulation", 1),
                                        coefficients<T>(noise, x, "noise", 0),
                                        pixels_per_sample(noise),
                                        view.channels,
                                        make_rectifier<Accumulator<T>>(kind, alpha, gain),
                                        make_clamp<T>(limit_of(clamp))};
    const std::optional<Tensor> partial = run_pass(device, operation, view, {dy, y, x}, dx);
    sum_chunks<Accumulator<T>>(device, *partial, sums, partial->size(0));
  });
  return {dx, sums};
}

}  // namespace hires_gan
