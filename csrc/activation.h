// The activations and their derivatives of any order up to kMaxOrder, in the accumulation type.

#pragma once

#include "device.h"

#include <limits>
#include <optional>
#include <string>

#include <torch/headeronly/util/Exception.h>

namespace hires_gan {

// Rounds to T, then clamps the rounded value, so that the gradient's mask can be read off the result. A clamp that is
// not a number is none: every comparison with it is false. NaN passes.
template <typename T>
struct Clamp {
  using A = Accumulator<T>;

  A limit;

  HD bool saturated(A rounded) const { return std::abs(rounded) >= limit; }

  HD T operator()(A value) const {
    const T rounded = static_cast<T>(value);
    const A wide = static_cast<A>(rounded);
    const T bound = static_cast<T>(std::copysign(limit, wide));  // before the choice, which then needs no branch
    return saturated(wide) ? bound : rounded;
  }
};

inline double limit_of(const std::optional<double>& clamp) {
  return clamp ? *clamp : std::nan("");
}

template <typename T>
Clamp<T> make_clamp(double limit) {
  using A = Accumulator<T>;
  const double most = std::numeric_limits<A>::max();
  return {static_cast<A>(static_cast<T>(static_cast<A>(limit > most ? most : limit)))};
}

// linear, relu and lrelu: v for v > 0, else slope * v.
template <typename A>
struct Rectifier {
  A slope;
  A gain;

  // Written without branches: random signs would split every warp.
  HD A value(A v) const {
    const A below = slope == 0 && v == v ? A(0) : slope * v;  // 0 times minus infinity would be no number
    return gain * (v > 0 ? v : below);
  }

  // Of `side`, only the sign counts: v itself, or the result divided by the sign of the gain. As torch has it, what is
  // no number lets relu's gradient through.
  HD A derivative(A u, A side) const {
    const A below = slope == 0 ? (side == side ? A(0) : u) : slope * u;
    return gain * (side > 0 ? u : below);
  }
};

enum class Kind : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

constexpr int kMaxOrder = 6;

// A polynomial of degree < kMaxOrder.
template <typename A>
struct Polynomial {
  A coefficients[kMaxOrder] = {};

  HD A operator()(A s) const {
    A value = coefficients[kMaxOrder - 1];
    UNROLL for (int i = kMaxOrder - 2; i >= 0; --i) value = value * s + coefficients[i];
    return value;
  }
};

// With w(s) = w0 + w1 s + w2 s^2 the derivative of a function s(v) by v, its derivative of order k is w(s) q_k(s):
// q_1 = 1, q_{k+1} = w' q_k + w q_k'. The sigmoid has w = s - s^2, the hyperbolic tangent w = 1 - s^2.
template <typename A>
Polynomial<A> derivative_polynomial(int order, A w0, A w1, A w2) {
  Polynomial<A> q;
  q.coefficients[0] = 1;
  for (int k = 1; k < order; ++k) {
    Polynomial<A> next;
    for (int i = 0; i < k; ++i) {
      const A c = q.coefficients[i];
      next.coefficients[i] += w1 * c;
      next.coefficients[i + 1] += 2 * w2 * c;
      if (i > 0) {
        next.coefficients[i - 1] += w0 * i * c;
        next.coefficients[i] += w1 * i * c;
        next.coefficients[i + 1] += w2 * i * c;
      }
    }
    q = next;
  }
  return q;
}

// Every activation; `order` 0 is the function itself. The gain is not part of it, the slope of lrelu is.
template <typename A>
struct Smooth {
  Kind kind;
  int order;
  A alpha;
  Polynomial<A> own;    // the derivative's polynomial
  Polynomial<A> below;  // the one of an order less, for softplus and swish

  HD_CALLED A value(A v) const {
    switch (kind) {
      case Kind::linear: return v;
      case Kind::relu: return Rectifier<A>{0, 1}.value(v);
      case Kind::lrelu: return Rectifier<A>{alpha, 1}.value(v);
      case Kind::tanh: return std::tanh(v);
      case Kind::sigmoid: return sigmoid(v);
      case Kind::elu: return v > 0 ? v : std::expm1(v);
      case Kind::selu: return A(kSeluScale) * (v > 0 ? v : A(kSeluAlpha) * std::expm1(v));
      case Kind::softplus: return v != v ? v : (v > 0 ? v : A(0)) + std::log1p(std::exp(-std::abs(v)));
      case Kind::swish: return v * sigmoid(v);
    }
    return v;
  }

  // The derivative of this->order >= 1.
  HD_CALLED A derivative(A v) const {
    const A once = order == 1 ? A(1) : A(0);
    switch (kind) {
      case Kind::linear: return once;
      case Kind::relu: return v <= 0 ? A(0) : once;
      case Kind::lrelu: return v > 0 ? once : alpha * once;
      case Kind::tanh: return 4 * slope(2 * v) * own(std::tanh(v));
      case Kind::sigmoid: return slope(v) * own(sigmoid(v));
      case Kind::elu: return v > 0 ? once : std::exp(v);
      case Kind::selu: return A(kSeluScale) * (v > 0 ? once : A(kSeluAlpha) * std::exp(v));
      case Kind::softplus: return sigmoid_below(v);
      case Kind::swish: return v * (slope(v) * own(sigmoid(v))) + A(order) * sigmoid_below(v);
    }
    return v;
  }

 private:
  static constexpr double kSeluScale = 1.0507009873554804934193349852946;
  static constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

  HD static A sigmoid(A v) {
    const A e = std::exp(-std::abs(v));
    return (v >= 0 ? A(1) : e) / (1 + e);
  }

  // sigmoid(v) sigmoid(-v), without the cancellation of s (1 - s).
  HD static A slope(A v) {
    const A e = std::exp(-std::abs(v));
    return e / ((1 + e) * (1 + e));
  }

  HD A sigmoid_below(A v) const { return order == 1 ? sigmoid(v) : slope(v) * below(sigmoid(v)); }
};

inline Kind kind_of(const std::string& name) {
  const char* names[] = {"linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"};
  for (int i = 0; i < 9; ++i) {
    if (name == names[i]) return static_cast<Kind>(i);
  }
  STD_TORCH_CHECK(false, "act is ", name, ", which is no known activation");
  return Kind::linear;
}

inline bool is_rectifier(Kind kind) {
  return kind == Kind::linear || kind == Kind::relu || kind == Kind::lrelu;
}

template <typename A>
Rectifier<A> make_rectifier(Kind kind, double alpha, double gain) {
  const double slope = kind == Kind::linear ? 1 : kind == Kind::relu ? 0 : alpha;
  return {static_cast<A>(slope), static_cast<A>(gain)};
}

template <typename A>
Smooth<A> make_smooth(Kind kind, int64_t order, double alpha) {
  STD_TORCH_CHECK(order >= 0 && order <= kMaxOrder, "order is ", order, "; derivatives of order 1 to ", kMaxOrder,
                  " are there");
  Smooth<A> smooth{kind, static_cast<int>(order), static_cast<A>(alpha), {}, {}};
  const bool tanh = kind == Kind::tanh;
  const A w0 = tanh ? 1 : 0, w1 = tanh ? 0 : 1;
  if (order >= 1) smooth.own = derivative_polynomial<A>(smooth.order, w0, w1, A(-1));
  if (order >= 2) smooth.below = derivative_polynomial<A>(smooth.order - 1, w0, w1, A(-1));
  return smooth;
}

}  // namespace hires_gan
