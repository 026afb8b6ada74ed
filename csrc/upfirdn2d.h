// Upsample by zeros, pad or crop, filter, keep every D-th: along each axis, with u[j] = x[j / U] where U divides j,
//   y[m] = gain * sum_t g[t] u[m D + t - p0],    g[t] = f[n - 1 - t], or f[t] where the filter is flipped.
// One kernel for any factors and taps, and one in tiles of registers for those that training uses.

#pragma once

#include "tensors.h"

namespace hires_gan {

constexpr int kMaxTaps = 64;
constexpr int64_t kMaxFactor = 1 << 16;
constexpr int64_t kMaxPadding = int64_t(1) << 48;  // a backward pass may ask for more than people do

HD int64_t floor_mod(int64_t a, int64_t b) {
  const int64_t r = a % b;
  return r < 0 ? r + b : r;
}

// The fastest of several coordinates that are counted in one number, which is left with the others.
HD int64_t take(int64_t& id, int64_t size) {
  const int64_t whole = id, rest = quotient(id, size);
  id = rest;
  return whole - rest * size;
}

struct Axis {
  int64_t in, out;           // samples
  int64_t in_stride, out_stride;
  int64_t up, down, pad;     // pad: p0
  int64_t taps;
};

// The filter, read in the order of g.
template <typename A>
struct Taps {
  const A* first;
  int step;  // 1, or -1 to read it backwards

  HD A operator[](int64_t i) const { return first[i * step]; }
};

template <typename T>
struct Images {
  const T* x;
  T* y;
  int64_t samples, channels;
  int64_t x_sample, x_channel, y_sample, y_channel;  // strides
  bool channels_last;                                // of y: how the threads lie
  Axis rows, columns;
  Taps<Accumulator<T>> taps;
  bool separable;  // one filter for both axes, else [rows.taps, columns.taps]
  Accumulator<T> gain;
};

struct NoShared {};

// One output value per thread.
template <typename T>
struct General {
  using A = Accumulator<T>;
  using Shared = NoShared;
  static constexpr int kPhases = 1;
  static constexpr int kBlocksAtOnce = 1;

  Images<T> images;

  int64_t blocks() const {
    return ceil_div(images.samples * images.channels * images.rows.out * images.columns.out, kThreads);
  }

  template <int kPhase>
  HD void phase(int64_t block, int thread, Shared&) const {
    int64_t id = block * kThreads + thread, channel = 0;
    const Axis &rows = images.rows, &columns = images.columns;
    if (images.channels_last) channel = take(id, images.channels);
    const int64_t column = take(id, columns.out);
    const int64_t row = take(id, rows.out);
    if (!images.channels_last) channel = take(id, images.channels);
    if (id >= images.samples) return;
    const T* x = images.x + id * images.x_sample + channel * images.x_channel;
    T* y = images.y + id * images.y_sample + channel * images.y_channel;
    y[row * rows.out_stride + column * columns.out_stride] = static_cast<T>(images.gain * value(x, row, column));
  }

 private:
  // The taps that meet samples: first tap, first sample, how many of each, `up` taps apart.
  struct Meeting {
    int64_t tap, sample, count;
  };

  HD static Meeting meet(const Axis& axis, int64_t out) {
    const int64_t position = out * axis.down - axis.pad;
    Meeting met;
    met.tap = floor_mod(-position, axis.up);
    met.sample = (position + met.tap) / axis.up;
    if (met.sample < 0) {
      met.tap -= met.sample * axis.up;
      met.sample = 0;
    }
    const int64_t by_taps = ceil_div(axis.taps - met.tap, axis.up), by_samples = axis.in - met.sample;
    met.count = by_taps < by_samples ? by_taps : by_samples;
    return met;
  }

  HD A value(const T* x, int64_t row, int64_t column) const {
    const Axis &rows = images.rows, &columns = images.columns;
    const Meeting down = meet(rows, row), across = meet(columns, column);
    A sum = 0;
    for (int64_t i = 0; i < down.count; ++i) {
      const T* line = x + (down.sample + i) * rows.in_stride + across.sample * columns.in_stride;
      const int64_t row_tap = down.tap + i * rows.up;
      const int64_t first = (images.separable ? 0 : row_tap * columns.taps) + across.tap;
      A part = 0;
      for (int64_t j = 0; j < across.count; ++j) {
        part += images.taps[first + j * columns.up] * static_cast<A>(line[j * columns.in_stride]);
      }
      sum += images.separable ? images.taps[row_tap] * part : part;
    }
    return sum;
  }
};

// A tile of kHigh x kWide outputs, kVector channels deep, per thread. Factors and taps are the same along both axes and
// known to the compiler, so that it is settled which tap meets which sample: tiles begin where U divides m D - p0.
// Tiles that lie within the image take a straight path, where kFast says that there is one, and pixels of one channel
// lie side by side unless kVector is more than 1; those at its edge look where they read.
template <typename T, int kUp, int kDown, int kTaps, bool kSeparable, int kVector, int kWide, int kHigh, bool kFast>
struct Tiled {
  using A = Accumulator<T>;
  using Shared = NoShared;
  using Samples = Vector<T, kVector>;
  using Sums = A[kHigh][kWide][kVector];
  static constexpr int kPhases = 1;
  static constexpr int kBlocksAtOnce = kVector > 1 && kUp == 1 && kTaps == 4 ? 3 : 1;
  static constexpr int kColumns = ((kWide - 1) * kDown + kTaps - 1) / kUp + 1;  // samples that a tile meets
  static constexpr int kRows = ((kHigh - 1) * kDown + kTaps - 1) / kUp + 1;
  static constexpr bool kShort = kTaps <= 4;
  static_assert(kWide % kUp == 0 && kHigh % kUp == 0, "a tile holds whole periods of the factors");

  Images<T> images;

  HD static int64_t shift(const Axis& axis) { return floor_mod(axis.pad, kUp); }
  HD static int64_t tiles(const Axis& axis, int size) { return ceil_div(axis.out + shift(axis), size); }

  int64_t blocks() const {
    const int64_t per_channel = tiles(images.rows, kHigh) * tiles(images.columns, kWide);
    return ceil_div(images.samples * (images.channels / kVector) * per_channel, kThreads);
  }

  template <int kPhase>
  HD void phase(int64_t block, int thread, Shared&) const {
    int64_t id = block * kThreads + thread, channel = 0;
    const int64_t depth = images.channels / kVector;
    if (images.channels_last) channel = take(id, depth) * kVector;
    const int64_t column = take(id, tiles(images.columns, kWide)) * kWide - shift(images.columns);
    const int64_t row = take(id, tiles(images.rows, kHigh)) * kHigh - shift(images.rows);
    if (!images.channels_last) channel = take(id, depth) * kVector;
    if (id >= images.samples) return;
    const T* x = images.x + id * images.x_sample + channel * images.x_channel;
    T* y = images.y + id * images.y_sample + channel * images.y_channel;
    tile(x, y, row, column);
  }

 private:
  HD void tile(const T* x, T* y, int64_t row, int64_t column) const {
    const int64_t first_row = (row * kDown - images.rows.pad) / kUp;
    const int64_t first_column = (column * kDown - images.columns.pad) / kUp;
    const bool inside = first_row >= 0 && first_row + kRows <= images.rows.in && first_column >= 0 &&
                        first_column + kColumns <= images.columns.in;
    Sums sums = {};
    if (kFast && inside) {
      add_inside(x + first_row * images.rows.in_stride + first_column * column_stride(), sums);
    } else {
      add_at_edge(x, first_row, first_column, sums);
    }
    UNROLL for (int q = 0; q < kHigh; ++q) {
      if (row + q >= 0 && row + q < images.rows.out) write(y + (row + q) * images.rows.out_stride, column, sums[q]);
    }
  }

  HD int64_t column_stride() const { return kFast && kVector == 1 ? 1 : images.columns.in_stride; }

  HD void add_inside(const T* line, Sums& sums) const {
    if constexpr (kShort) {
      constexpr int kCount = kSeparable ? kTaps : kTaps * kTaps;
      A taps[kCount];
      UNROLL for (int i = 0; i < kCount; ++i) taps[i] = images.taps[i];
      UNROLL for (int r = 0; r < kRows; ++r, line += images.rows.in_stride) add_line_inside(line, r, taps, sums);
    } else {
      ROLLED for (int r = 0; r < kRows; ++r, line += images.rows.in_stride) add_line_inside(line, r, images.taps, sums);
    }
  }

  template <typename Weights>
  HD void add_line_inside(const T* line, int r, const Weights& taps, Sums& sums) const {
    Samples samples[kColumns];
    UNROLL for (int i = 0; i < kColumns; ++i) samples[i] = load<kVector>(line + i * column_stride());
    add(samples, r, taps, sums);
  }

  HD void add_at_edge(const T* x, int64_t first_row, int64_t first_column, Sums& sums) const {
    ROLLED for (int r = 0; r < kRows; ++r) {
      const int64_t at = first_row + r;
      if (at < 0 || at >= images.rows.in) continue;
      const T* line = x + at * images.rows.in_stride;
      Samples samples[kColumns];
      UNROLL for (int i = 0; i < kColumns; ++i) {
        const int64_t column = first_column + i;
        const bool there = column >= 0 && column < images.columns.in;
        samples[i] = there ? load<kVector>(line + column * column_stride()) : Samples{};
      }
      add(samples, r, images.taps, sums);
    }
  }

  // Adds what the r-th line of samples that the tile meets has to give.
  template <typename Weights>
  HD void add(const Samples (&samples)[kColumns], int r, const Weights& taps, Sums& sums) const {
    A filtered[1][kWide][kVector] = {};
    if constexpr (kSeparable) filter(samples, taps, 0, filtered[0]);
    UNROLL for (int q = 0; q < kHigh; ++q) {
      const int tap = r * kUp - q * kDown;
      if (tap < 0 || tap >= kTaps) continue;
      if constexpr (kSeparable) {
        const A weight = taps[tap];
        UNROLL for (int p = 0; p < kWide; ++p) {
          UNROLL for (int v = 0; v < kVector; ++v) sums[q][p][v] += weight * filtered[0][p][v];
        }
      } else {
        filter(samples, taps, tap * kTaps, sums[q]);
      }
    }
  }

  // Adds one line, filtered by one row of taps.
  template <typename Weights>
  HD void filter(const Samples (&samples)[kColumns], const Weights& taps, int first, A (&sums)[kWide][kVector]) const {
    UNROLL for (int i = 0; i < kColumns; ++i) {
      UNROLL for (int p = 0; p < kWide; ++p) {
        const int tap = i * kUp - p * kDown;
        if (tap < 0 || tap >= kTaps) continue;
        const A weight = taps[first + tap];
        UNROLL for (int v = 0; v < kVector; ++v) sums[p][v] += weight * static_cast<A>(samples[i].values[v]);
      }
    }
  }

  HD void write(T* line, int64_t column, const A (&sums)[kWide][kVector]) const {
    Samples values[kWide];
    UNROLL for (int p = 0; p < kWide; ++p) {
      UNROLL for (int v = 0; v < kVector; ++v) values[p].values[v] = static_cast<T>(images.gain * sums[p][v]);
    }
    const int64_t stride = images.columns.out_stride;
    if constexpr (kVector == 1) {
      T* at = line + column;
      const bool whole = stride == 1 && column >= 0 && column + kWide <= images.columns.out;
      if (whole && aligned(at, sizeof(Vector<T, kWide>))) {
        Vector<T, kWide> row;
        UNROLL for (int p = 0; p < kWide; ++p) row.values[p] = values[p].values[0];
        store<kWide>(at, row);
        return;
      }
    }
    UNROLL for (int p = 0; p < kWide; ++p) {
      const int64_t at = column + p;
      if (at >= 0 && at < images.columns.out) store<kVector>(line + at * stride, values[p]);
    }
  }
};

inline Axis axis_of(const Tensor& x, const Tensor& y, const Tensor& f, int dim, int64_t up, int64_t down, int64_t pad) {
  return {x.size(dim), y.size(dim), x.stride(dim), y.stride(dim), up, down, pad, f.size(f.dim() == 1 ? 0 : dim - 2)};
}

// Whether kVector channels of every pixel lie together, where one access can take them.
template <typename T, int kVector>
bool in_vectors(const Images<T>& images) {
  bool fits = images.channels_last && images.x_channel == 1 && images.y_channel == 1 && images.channels % kVector == 0;
  fits = fits && aligned(images.x, sizeof(T) * kVector) && aligned(images.y, sizeof(T) * kVector);
  fits = fits && images.x_sample % kVector == 0 && images.rows.in_stride % kVector == 0;
  return fits && images.columns.in_stride % kVector == 0;
}

constexpr int kDeep = 4;  // channels that a thread takes at once

template <typename T, int kUp, int kDown, int kTaps, bool kSeparable, typename Device>
void run_tiled(const Device& device, const Images<T>& images) {
  constexpr bool kShort = kTaps == 4;
  const auto launch = [&](auto kernel) {
    kernel.images = images;
    device.launch(kernel, kernel.blocks());
  };
  if constexpr (kShort) {  // long filters are for images, which have no channels to take at once
    if (in_vectors<T, kDeep>(images)) {
      launch(Tiled<T, kUp, kDown, kTaps, kSeparable, kDeep, kSeparable && kUp == 2 ? 4 : 2, 4, true>{});
      return;
    }
  }
  constexpr int kWide = kShort && sizeof(T) == 4 ? 2 : 4 / kDown;
  constexpr int kHigh = kSeparable ? 8 : kShort ? 4 : 2;
  if constexpr (kShort || kSeparable) {  // 144 taps cost more than to look where they read
    if (images.columns.in_stride == 1) {
      launch(Tiled<T, kUp, kDown, kTaps, kSeparable, 1, kWide, kHigh, true>{});
      return;
    }
  }
  launch(Tiled<T, kUp, kDown, kTaps, kSeparable, 1, kWide, kHigh, false>{});
}

template <typename T, int kTaps, bool kSeparable, typename Device>
void run_by_factor(const Device& device, const Images<T>& images) {
  if (images.rows.up == 2) run_tiled<T, 2, 1, kTaps, kSeparable>(device, images);
  else if (images.rows.down == 2) run_tiled<T, 1, 2, kTaps, kSeparable>(device, images);
  else run_tiled<T, 1, 1, kTaps, kSeparable>(device, images);
}

template <typename T, typename Device>
void run_upfirdn2d(const Device& device, const Images<T>& images) {
  const Axis &rows = images.rows, &columns = images.columns;
  const int64_t factor = rows.up * rows.down, taps = rows.taps;
  const bool square = rows.up == columns.up && rows.down == columns.down && taps == columns.taps;
  if constexpr (!std::is_same_v<T, double>) {  // float64 is for checks
    if (square && factor <= 2 && (taps == 4 || taps == 12)) {
      if (taps == 4 && images.separable) run_by_factor<T, 4, true>(device, images);
      else if (taps == 4) run_by_factor<T, 4, false>(device, images);
      else if (images.separable) run_by_factor<T, 12, true>(device, images);
      else run_by_factor<T, 12, false>(device, images);
      return;
    }
  }
  const General<T> kernel{images};
  device.launch(kernel, kernel.blocks());
}

inline int64_t out_side(int64_t in, int64_t up, int64_t down, int64_t pads, int64_t taps) {
  const int64_t room = in * up + pads - taps;
  STD_TORCH_CHECK(room >= 0, "the result would have no pixels");
  return room / down + 1;
}

inline void check_upfirdn2d(const Tensor& x, const Tensor& f, const std::vector<int64_t>& up,
                            const std::vector<int64_t>& down, const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions; 4 are allowed");
  STD_TORCH_CHECK(f.dim() == 1 || f.dim() == 2, "f has ", f.dim(), " dimensions; 1 or 2 are allowed");
  STD_TORCH_CHECK(f.scalar_type() == accumulation_type(x), "f has to have the dtype in which x is computed");
  STD_TORCH_CHECK(f.device() == x.device(), "f has to be on the device of x");
  STD_TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                  "up and down have 2 values each, along x and y, padding has 4: x0, x1, y0, y1");
  for (const int64_t factor : {up[0], up[1], down[0], down[1]}) {
    STD_TORCH_CHECK(factor >= 1 && factor <= kMaxFactor, "up and down have to lie in 1 to ", kMaxFactor);
  }
  for (const int64_t pad : padding) {
    STD_TORCH_CHECK(-kMaxPadding <= pad && pad <= kMaxPadding, "padding is ", pad, ", too far from 0");
  }
  for (int i = 0; i < f.dim(); ++i) {
    STD_TORCH_CHECK(f.size(i) >= 1 && f.size(i) <= kMaxTaps, "f has ", f.size(i), " taps; 1 to ", kMaxTaps,
                    " are allowed");
  }
}

// up and down are [x, y], padding is [x0, x1, y0, y1].
template <typename Device>
Tensor upfirdn2d(const Tensor& x, const Tensor& f_in, const std::vector<int64_t>& up, const std::vector<int64_t>& down,
                 const std::vector<int64_t>& padding, bool flip_filter, double gain) {
  check_upfirdn2d(x, f_in, up, down, padding);
  const Tensor f = in_format(f_in, MemoryFormat::Contiguous);
  const int64_t high = out_side(x.size(2), up[1], down[1], padding[2] + padding[3], f.size(0));
  const int64_t wide = out_side(x.size(3), up[0], down[0], padding[0] + padding[1], f.size(f.dim() - 1));
  const MemoryFormat format = format_of(x);
  const Tensor y = empty(x, {x.size(0), x.size(1), high, wide}, x.scalar_type(), format);
  if (y.numel() == 0) return y;
  const Device device(x);
  by_dtype(x, [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    Images<T> images{};
    images.x = static_cast<const T*>(x.const_data_ptr());
    images.y = static_cast<T*>(y.mutable_data_ptr());
    images.samples = x.size(0);
    images.channels = x.size(1);
    images.x_sample = x.stride(0);
    images.x_channel = x.stride(1);
    images.y_sample = y.stride(0);
    images.y_channel = y.stride(1);
    images.channels_last = format == MemoryFormat::ChannelsLast;
    images.rows = axis_of(x, y, f, 2, up[1], down[1], padding[2]);
    images.columns = axis_of(x, y, f, 3, up[0], down[0], padding[0]);
    const A* first = static_cast<const A*>(f.const_data_ptr());
    images.taps = flip_filter ? Taps<A>{first, 1} : Taps<A>{first + f.numel() - 1, -1};
    images.separable = f.dim() == 1;
    images.gain = static_cast<A>(gain);
    run_upfirdn2d<T>(device, images);
  });
  return y;
}

}  // namespace hires_gan
