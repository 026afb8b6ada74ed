// What the kernels need of a device: the same code is compiled for the GPU and, as its twin, for the CPU.
//
// A kernel is a struct with
//   struct Shared                                       memory that the threads of one block share
//   static constexpr int kPhases                        how many phases it has, between which the threads wait
//   static constexpr int kBlocksAtOnce                  that a multiprocessor shall have room for: bounds the registers
//   template <int kPhase> HD void phase(int64_t block, int thread, Shared&) const
// and knows nothing of CUDA. The GPU runs its phases with a barrier between them (launch_cuda.cuh), the CPU runs each
// phase for one thread after the other (launch_cpu.h). Nothing lives in registers across a phase.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__CUDACC__)
#define HD __host__ __device__ __forceinline__
#define HD_CALLED __host__ __device__ __noinline__  // where speed does not count, but the time to compile does
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#else
#define HD inline
#define HD_CALLED inline
#define UNROLL
#define ROLLED
#endif

namespace hires_gan {

constexpr int kThreads = 256;

// Half and bfloat16 are computed in float.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Vector {
  T values[kCount];
};

// How many elements one access of 16 bytes moves.
// float64 is for checks, not for speed.
template <typename T>
constexpr int kWidest = std::is_same_v<T, double> ? 1 : 16 / sizeof(T);

template <int kCount, typename T>
HD Vector<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

// The compiler takes an assignment of a vector apart, and lanes that each write a few bytes far from the others' cost
// a transaction each: what is one access is written as one.
template <int kCount, typename T>
HD void store(T* to, const Vector<T, kCount>& vector) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(vector) == 16) {
    uint4 bits;
    memcpy(&bits, &vector, 16);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
    return;
  } else if constexpr (sizeof(vector) == 8) {
    uint2 bits;
    memcpy(&bits, &vector, 8);
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(bits.x), "r"(bits.y) : "memory");
    return;
  } else if constexpr (sizeof(vector) == 4 && kCount > 1) {
    uint32_t bits;
    memcpy(&bits, &vector, 4);
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(bits) : "memory");
    return;
  }
#endif
  *reinterpret_cast<Vector<T, kCount>*>(to) = vector;
}

HD bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0;
}

// a / b of numbers that are not negative; most fit into 32 bits, where a division takes a fifth of the time.
HD int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

HD int64_t ceil_div(int64_t a, int64_t b) {
  return quotient(a + b - 1, b);
}

// A small tensor of coefficients in the dtype T of the images or in float; absent, every value is `fallback`.
template <typename T>
struct Coefficients {
  using A = Accumulator<T>;

  const void* data = nullptr;
  bool wide = false;
  A fallback = 0;

  HD A at(int64_t index) const {
    if (data == nullptr) return fallback;
    return wide ? static_cast<const A*>(data)[index] : static_cast<A>(static_cast<const T*>(data)[index]);
  }

  // As `vector`, into an array; one value may lie anywhere.
  template <int kCount>
  HD void fill(int64_t index, A (&out)[kCount]) const {
    if constexpr (kCount == 1) {
      out[0] = at(index);
    } else {
      const Vector<A, kCount> values = vector<kCount>(index);
      UNROLL for (int i = 0; i < kCount; ++i) out[i] = values.values[i];
    }
  }

  // kCount values that lie together; the first one where an access of them all may begin.
  template <int kCount>
  HD Vector<A, kCount> vector(int64_t index) const {
    Vector<A, kCount> result;
    if (data == nullptr) {
      UNROLL for (int i = 0; i < kCount; ++i) result.values[i] = fallback;
    } else if (wide) {
      result = load<kCount>(static_cast<const A*>(data) + index);
    } else {
      const Vector<T, kCount> narrow = load<kCount>(static_cast<const T*>(data) + index);
      UNROLL for (int i = 0; i < kCount; ++i) result.values[i] = static_cast<A>(narrow.values[i]);
    }
    return result;
  }
};

}  // namespace hires_gan
