// One pass over tensors of one shape, element by element, that can also sum terms per group and channel.
//
// A tensor is seen as `groups` times `channels` rows of `pixels` values (channels first), or as `groups` times `pixels`
// rows of `channels` values (channels last). An Operation says what happens to an element:
//   Element                       the dtype T of the tensors; kInputs, kOutputs, kSums (terms to sum, maybe 0), kNoise
//   Row                           what is the same for all elements of a group and channel
//   HD void rows<kRows>(group, channel, Row (&)[kRows]): of kRows channels from one on
//   bool aligned_rows()           whether the coefficients behind several rows may be read at once
//   Coefficients<T> noise         one value per pixel, used where kNoise; noise_index(group, pixel) is its place
//   HD void apply(const A (&in)[kInputs], const Row&, A noise, A (&terms)[kSums], T (&out)[kOutputs])
// Sums are taken in a fixed order: per thread, per block, and then by SumChunks over the blocks.

#pragma once

#include "device.h"

#include <algorithm>

namespace hires_gan {

struct View {
  int64_t groups;
  int64_t channels;
  int64_t pixels;
  bool channels_last;

  int64_t numel() const { return groups * channels * pixels; }
};

// How the threads of a block lie over the tensor: 2^across_log2 along its rows, the rest over rows.
struct Split {
  int across_log2;
  int64_t steps;   // of unroll(vector) accesses each, by every thread
  int64_t chunks;  // into which the pixels are cut
  int64_t blocks;

  HD int across() const { return 1 << across_log2; }
  HD int down() const { return kThreads >> across_log2; }
};

// Accesses that a thread has under way at once: 32 bytes of every input.
constexpr int unroll(int vector) {
  return vector == 1 ? 4 : 2;
}

inline int log2_above(int64_t count, int limit) {
  int log2 = 0;
  while (log2 < limit && (int64_t(1) << log2) < count) ++log2;
  return log2;
}

// Every step spares a thread the work of finding its place, and a partial sum; but a GPU wants blocks, too.
constexpr int64_t kBlocksWanted = 1024;

inline int64_t steps_of(const View& view, int vector, bool sums) {
  const int64_t blocks = view.numel() / (vector * unroll(vector) * kThreads);
  return std::clamp<int64_t>(blocks / kBlocksWanted, 1, sums ? 16 : 8);
}

inline Split split(const View& view, int vector, bool sums) {
  Split result{};
  const int64_t most_steps = steps_of(view, vector, sums);
  if (view.channels_last) {
    const int64_t columns = view.channels / vector;
    result.across_log2 = log2_above(columns, 6);
    const int64_t reach = result.down() * unroll(vector);
    result.steps = std::min(most_steps, ceil_div(view.pixels, reach));
    result.chunks = ceil_div(view.pixels, reach * result.steps);
    result.blocks = ceil_div(columns, result.across()) * result.chunks * view.groups;
  } else {
    const int64_t columns = view.pixels / vector;
    result.across_log2 = log2_above(columns, 8);
    const int64_t reach = result.across() * unroll(vector);
    result.steps = std::min(most_steps, ceil_div(columns, reach));
    result.chunks = ceil_div(columns, reach * result.steps);
    result.blocks = ceil_div(view.groups * view.channels, result.down()) * result.chunks;
  }
  return result;
}

// Adds up `lanes` values that lie `stride` apart in two phases: the first `kLanes` lanes take every kLanes-th value,
// then lane 0 adds theirs. Each thread touches only what is its own within a phase.
constexpr int kLanes = 16;

template <typename A>
HD void sum_lanes(A* values, int lanes, int stride, int lane) {
  if (lane >= kLanes) return;
  A sum = 0;
  for (int i = lane; i < lanes; i += kLanes) sum += values[i * stride];
  if (lane < lanes) values[lane * stride] = sum;
}

template <typename A>
HD A sum_first_lanes(const A* values, int lanes, int stride) {
  A sum = 0;
  for (int i = 0; i < lanes && i < kLanes; ++i) sum += values[i * stride];
  return sum;
}

template <typename Operation, int kVector, bool kChannelsLast>
struct Pass {
  using T = typename Operation::Element;
  using A = Accumulator<T>;
  using Row = typename Operation::Row;
  static constexpr int kInputs = Operation::kInputs;
  static constexpr int kOutputs = Operation::kOutputs;
  static constexpr int kSums = Operation::kSums;
  static constexpr int kPhases = kSums ? 3 : 1;
  static constexpr int kBlocksAtOnce = 1;
  static constexpr int kUnroll = unroll(kVector);
  static constexpr int kRows = kChannelsLast ? kVector : 1;  // that a thread sees
  static constexpr int kTerms = kSums ? kSums * kRows : 1;
  static constexpr int kNoises = kChannelsLast ? 1 : kVector;
  using Noise = Vector<A, kNoises>;

  struct Shared {
    A terms[kTerms][kSums ? kThreads : 1];
  };

  Operation operation;
  const T* in[kInputs];
  T* out[kOutputs];
  A* partial;  // [chunks, kSums, groups * channels]
  View view;
  Split split;

  template <int kPhase>
  HD void phase(int64_t block, int thread, Shared& shared) const {
    const Place place = locate(block, thread);
    if constexpr (kPhase == 0) {
      A terms[kTerms] = {};
      if (place.inside) walk(place, terms);
      if constexpr (kSums > 0) {
        UNROLL for (int i = 0; i < kTerms; ++i) shared.terms[i][thread] = terms[i];
      }
    } else {
      const int lanes = kChannelsLast ? split.down() : split.across();
      const int stride = kChannelsLast ? split.across() : 1;
      for (int i = 0; i < kTerms; ++i) {
        if constexpr (kPhase == 1) {
          sum_lanes(&shared.terms[i][thread - place.lane * stride], lanes, stride, place.lane);
        } else if (place.inside && place.lane == 0) {
          const int64_t row = place.group * view.channels + place.channel + i % kRows;
          const int64_t at = (place.chunk * kSums + i / kRows) * view.groups * view.channels + row;
          partial[at] = sum_first_lanes(&shared.terms[i][thread], lanes, stride);
        }
      }
    }
  }

 private:
  struct Place {
    int64_t group, channel;  // of the first row
    int64_t chunk;
    int64_t pixel;  // the first
    int lane;       // among the threads that see the same rows
    bool inside;
  };

  HD Place locate(int64_t block, int thread) const {
    const int x = thread & (split.across() - 1), y = thread >> split.across_log2;
    Place place;
    if constexpr (kChannelsLast) {
      const int64_t columns = ceil_div(view.channels / kVector, split.across());
      const int64_t rest = quotient(block, columns);
      place.channel = ((block - rest * columns) * split.across() + x) * kVector;
      place.group = quotient(rest, split.chunks);
      place.chunk = rest - place.group * split.chunks;
      place.pixel = place.chunk * split.steps * kUnroll * split.down() + y;
      place.lane = y;
      place.inside = place.channel < view.channels;
    } else {
      const int64_t rows = quotient(block, split.chunks);
      const int64_t row = rows * split.down() + y;
      place.chunk = block - rows * split.chunks;
      place.group = quotient(row, view.channels);
      place.channel = row - place.group * view.channels;
      place.pixel = (place.chunk * split.steps * kUnroll * split.across() + x) * kVector;
      place.lane = x;
      place.inside = place.group < view.groups;
    }
    return place;
  }

  HD int64_t index(const Place& place, int64_t pixel) const {
    return kChannelsLast ? (place.group * view.pixels + pixel) * view.channels + place.channel
                         : (place.group * view.channels + place.channel) * view.pixels + pixel;
  }

  HD void walk(const Place& place, A (&terms)[kTerms]) const {
    const int64_t stride = kChannelsLast ? split.down() : split.across() * kVector;
    const int64_t hop = kChannelsLast ? stride * view.channels : stride;  // from one access of a thread to its next
    Row rows[kRows];
    operation.template rows<kRows>(place.group, place.channel, rows);
    int64_t left = view.pixels - place.pixel;
    int64_t at = index(place, place.pixel), noise_at = 0;
    if constexpr (Operation::kNoise) noise_at = operation.noise_index(place.group, place.pixel);
    for (int64_t step = 0; step < split.steps; ++step) {
      Vector<T, kVector> values[kUnroll][kInputs];
      Noise noise[kUnroll] = {};
      UNROLL for (int k = 0; k < kUnroll; ++k) {  // all reads first: they overlap
        if (k * stride >= left) continue;
        UNROLL for (int i = 0; i < kInputs; ++i) values[k][i] = load<kVector>(in[i] + at + k * hop);
        if constexpr (Operation::kNoise) noise[k] = operation.noise.template vector<kNoises>(noise_at + k * stride);
      }
      UNROLL for (int k = 0; k < kUnroll; ++k) {
        if (k * stride < left) element(at + k * hop, rows, values[k], noise[k], terms);
      }
      at += kUnroll * hop;
      noise_at += kUnroll * stride;
      left -= kUnroll * stride;
    }
  }

  HD void element(int64_t at, const Row (&rows)[kRows], const Vector<T, kVector> (&values)[kInputs],
                  const Noise& noise, A (&terms)[kTerms]) const {
    Vector<T, kVector> results[kOutputs];
    UNROLL for (int v = 0; v < kVector; ++v) {
      const int row = kChannelsLast ? v : 0;
      A one[kInputs];
      UNROLL for (int i = 0; i < kInputs; ++i) one[i] = static_cast<A>(values[i].values[v]);
      A sums[kSums ? kSums : 1] = {};
      T made[kOutputs];
      operation.apply(one, rows[row], noise.values[kChannelsLast ? 0 : v], sums, made);
      UNROLL for (int i = 0; i < kOutputs; ++i) results[i].values[v] = made[i];
      UNROLL for (int s = 0; s < kSums; ++s) terms[s * kRows + row] += sums[s];
    }
    UNROLL for (int i = 0; i < kOutputs; ++i) store<kVector>(out[i] + at, results[i]);
  }
};

// [chunks, columns] -> [columns]: the sums of all chunks.
template <typename A>
struct SumChunks {
  static constexpr int kPhases = 3;
  static constexpr int kBlocksAtOnce = 1;
  static constexpr int kColumns = 8;

  struct Shared {
    A sums[kThreads];
  };

  const A* partial;
  A* out;
  int64_t chunks;
  int64_t columns;

  int64_t blocks() const { return ceil_div(columns, kColumns); }

  template <int kPhase>
  HD void phase(int64_t block, int thread, Shared& shared) const {
    constexpr int kDown = kThreads / kColumns;
    const int x = thread % kColumns, lane = thread / kColumns;
    const int64_t column = block * kColumns + x;
    if constexpr (kPhase == 0) {
      A sum = 0;
      if (column < columns) {
        for (int64_t chunk = lane; chunk < chunks; chunk += kDown) sum += partial[chunk * columns + column];
      }
      shared.sums[thread] = sum;
    } else if constexpr (kPhase == 1) {
      sum_lanes(&shared.sums[x], kDown, kColumns, lane);
    } else if (lane == 0 && column < columns) {
      out[column] = sum_first_lanes(&shared.sums[x], kDown, kColumns);
    }
  }
};

}  // namespace hires_gan
