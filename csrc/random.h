// Random numbers by counter: Philox4x32-10 (Salmon et al. 2011, section 4.3), as hires_gan/randomness.py defines them.
//
// The key is (seed, purpose), the counter (sample, position): four words for every position, in the order of a row.

#pragma once

#include "tensors.h"

namespace hires_gan {

constexpr int kWords = 4;

HD Vector<uint32_t, kWords> philox(uint64_t sample, uint64_t position, uint32_t seed, uint32_t purpose) {
  uint32_t c0 = static_cast<uint32_t>(sample), c1 = static_cast<uint32_t>(sample >> 32);
  uint32_t c2 = static_cast<uint32_t>(position), c3 = static_cast<uint32_t>(position >> 32);
  UNROLL for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * c0, second = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ seed;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ purpose;
    c3 = static_cast<uint32_t>(first);
    seed += 0x9E3779B9;
    purpose += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// What becomes of four words: themselves, in int64.
struct Words {
  using Element = int64_t;
  static constexpr ScalarType kDtype = ScalarType::Long;

  HD static void form(const Vector<uint32_t, kWords>& words, Element (&out)[kWords]) {
    UNROLL for (int i = 0; i < kWords; ++i) out[i] = words.values[i];
  }
};

// Numbers in [0, 1), in steps of 2^-24.
struct Uniforms {
  using Element = float;
  static constexpr ScalarType kDtype = ScalarType::Float;

  HD static void form(const Vector<uint32_t, kWords>& words, Element (&out)[kWords]) {
    UNROLL for (int i = 0; i < kWords; ++i) out[i] = static_cast<float>(words.values[i] >> 8) * 0x1p-24f;
  }
};

// Box and Muller's pairs, in double and rounded once, so that the last bits of a library's logarithm do not show.
struct Normals {
  using Element = float;
  static constexpr ScalarType kDtype = ScalarType::Float;
  static constexpr double kTurn = 6.283185307179586;

  HD static void form(const Vector<uint32_t, kWords>& words, Element (&out)[kWords]) {
    UNROLL for (int i = 0; i < kWords; i += 2) {
      const double radius = std::sqrt(-2.0 * std::log((words.values[i] + 0.5) * 0x1p-32));
      double sine, cosine;
      turn(words.values[i + 1] * (kTurn * 0x1p-32), sine, cosine);
      out[i] = static_cast<float>(radius * cosine);
      out[i + 1] = static_cast<float>(radius * sine);
    }
  }

  HD static void turn(double angle, double& sine, double& cosine) {
#if defined(__CUDA_ARCH__)
    sincos(angle, &sine, &cosine);  // shares the reduction of the angle
#else
    sine = std::sin(angle);
    cosine = std::cos(angle);
#endif
  }
};

// One thread makes the numbers of one counter; those beyond the end of a row are dropped.
template <typename Form>
struct Draw {
  using Element = typename Form::Element;
  struct Shared {};
  static constexpr int kPhases = 1;
  static constexpr int kBlocksAtOnce = 1;
  static constexpr int kWide = 16 / sizeof(Element);  // numbers in one access

  const int64_t* samples;
  Element* out;
  int64_t rows, count, positions;
  uint32_t seed, purpose;

  int64_t blocks() const { return ceil_div(rows * positions, kThreads); }

  template <int kPhase>
  HD void phase(int64_t block, int thread, Shared&) const {
    const int64_t index = block * kThreads + thread;
    if (index >= rows * positions) return;
    const int64_t row = quotient(index, positions), position = index - row * positions;
    Element numbers[kWords];
    Form::form(philox(static_cast<uint64_t>(samples[row]), static_cast<uint64_t>(position), seed, purpose), numbers);
    write(out + row * count + position * kWords, count - position * kWords, numbers);
  }

  HD static void write(Element* to, int64_t left, const Element (&numbers)[kWords]) {
    if (left >= kWords && aligned(to, 16)) {
      UNROLL for (int i = 0; i < kWords; i += kWide) {
        Vector<Element, kWide> vector;
        UNROLL for (int j = 0; j < kWide; ++j) vector.values[j] = numbers[i + j];
        store(to + i, vector);
      }
    } else {
      UNROLL for (int i = 0; i < kWords; ++i) {
        if (i < left) to[i] = numbers[i];
      }
    }
  }
};

inline uint32_t half_key(int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value <= UINT32_MAX, name, " is ", value, "; it must lie in [0, 2^32)");
  return static_cast<uint32_t>(value);
}

// [n, count] numbers of `Form` for the n samples, whose indices the kernel itself reads.
template <typename Form, typename Device>
Tensor draw(const Tensor& samples_in, int64_t count, int64_t seed, int64_t purpose) {
  STD_TORCH_CHECK(samples_in.dim() == 1 && samples_in.scalar_type() == ScalarType::Long, "samples has to be int64 [n]");
  STD_TORCH_CHECK(count >= 0, "count is ", count, "; 0 or more are allowed");
  const uint32_t first = half_key(seed, "seed"), second = half_key(purpose, "purpose");
  const Tensor samples = in_format(samples_in, MemoryFormat::Contiguous);
  const Tensor out = empty(samples, {samples.size(0), count}, Form::kDtype);
  if (out.numel() == 0) return out;
  const Device device(samples);
  const Draw<Form> kernel{static_cast<const int64_t*>(samples.const_data_ptr()),
                          static_cast<typename Form::Element*>(out.mutable_data_ptr()),
                          samples.size(0),
                          count,
                          ceil_div(count, kWords),
                          first,
                          second};
  device.launch(kernel, kernel.blocks());
  return out;
}

template <typename Device>
Tensor philox_words(const Tensor& samples, int64_t count, int64_t seed, int64_t purpose) {
  return draw<Words, Device>(samples, count, seed, purpose);
}

template <typename Device>
Tensor philox_uniform(const Tensor& samples, int64_t count, int64_t seed, int64_t purpose) {
  return draw<Uniforms, Device>(samples, count, seed, purpose);
}

template <typename Device>
Tensor philox_normal(const Tensor& samples, int64_t count, int64_t seed, int64_t purpose) {
  return draw<Normals, Device>(samples, count, seed, purpose);
}

}  // namespace hires_gan
