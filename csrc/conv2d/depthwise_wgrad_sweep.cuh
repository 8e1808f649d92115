// Depthwise wgrad, multiplier 1, in one sweep: dw[c,r,s] = sum over n,p,q of x[n,c,...] * dy[n,c,p,q].
//
// Walk: a block takes a chunk of channels and a range of stages; a stage is some rows of dy of one image, or
// some whole images, and the rows of x that their taps reach. Stages come to shared memory by 16-byte
// cp.async, the next one while this one is summed. NHWC: 64 bytes of channels a pixel, whole rows or a few
// column tiles; x is a ring of rows, so that stages that follow one another in an image bring no row again.
// NCHW: runs of 16 bytes, whatever the width, of a few channels' planes or of some rows of a plane. A thread
// keeps one channel's (NHWC: 2 or 4 channels') sums of a window of taps in registers, the whole kernel for
// 3x3, 5x5 and 7x7, else the 5x5 taps of its warp. It takes some rows of dy of one column at a time (an
// item), and each element of x that it loads meets all of them: kRows * kWindow^2 products for
// (kRows + kWindow - 1) * kWindow + kRows loads. Threads are then summed by shuffles and shared memory, the
// splits by split_sum.
// Floor: bytes of x and dy once; 2*R*S flops per dy. At 2 bytes memory bounds 3x3, the FMA units 7x7, 5x5 has
// both in balance; at 4 bytes memory bounds all three. Beyond the floor: halos of column tiles, and of NCHW
// stages of some rows of a plane; rows at which splits meet; partial sums, written and read once.
// Rows, columns and filters past an edge are no operands. Items of rows that lie wholly inside take a path
// without predicates; at an edge, rows of x outside count as zeros where all of dy is finite, which takes no
// branches, and are skipped where it is not.
// Registers (ptxas, sm_90a; sm_80 is near): NHWC 3x3 128 to 140, 5x5 and 7x7 up to 255: three and two blocks
// of 128 threads an SM, with 72 KiB each; where partial sums are many, one of 256 instead of two. NCHW 88 to
// 161. No spills. Why: all taps in registers make one pass of it, and shared memory the 16-byte accesses of
// any stride, width and dilation. No atomics: the same bits in every run.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_wgrad_sweep.h"
#include "conv2d/grad_activation.cuh"
#include "conv2d/thread_tile.h"
#include "ptx/cp_async.cuh"

namespace fastcnn::sweep {

template <class T>
inline constexpr int kPer16 = 16 / static_cast<int>(sizeof(T));

// kVector channels, kWindow x kWindow taps, kRows output rows; the rows of x of neighbouring ones lie kStride
// tap steps apart. kWhole: the window is the kernel.
template <bool kChannelsLast_, int kWindow_, int kStride_, int kRows_, bool kWhole_>
struct SweepTile {
  static constexpr bool kChannelsLast = kChannelsLast_;
  static constexpr int kWindow = kWindow_;
  static constexpr int kStride = kStride_;
  static constexpr int kRows = kRows_;
  static constexpr bool kWhole = kWhole_;
  static constexpr int kVector = sweep_vector(kChannelsLast, kWindow, kWhole);
  static constexpr int kXRows = (kRows - 1) * kStride + kWindow;
  static constexpr int kSums = kWindow * kWindow * kVector;
  // As many as registers leave room for, in one block or several.
  static constexpr int kThreads =
      kWhole ? kSweepThreads * sweep_blocks(kChannelsLast, kWindow) : kSweepMostThreads;
};

template <class T>
using Arena = SharedArray<T, kSweepArenaBytes / static_cast<int>(sizeof(T))>;
template <class T>
struct StageShared {
  Arena<T> arena;
};
// Over the arena, when the last stage is done.
struct SumsShared {
  Arena<float> sums;
};

template <class Tile>
struct Sums {
  float weight[Tile::kWindow][Tile::kWindow][Tile::kVector] = {};
  float bias[Tile::kVector] = {};
};

// A block's part of the problem, and a thread's part of the block.
struct Place {
  int channel;             // the first of the chunk
  int q, columns;          // of dy
  int w, x_columns;        // of x
  int split, column_tile;  // whose partial sums these are
  int window_group;
  int lane, worker, window;
};

template <class Tile>
__device__ inline Place place_of(const DepthwiseSweepParams& params) {
  const Conv2dProblem& problem = params.problem;
  Place place;
  int chunk;
  int rest = params.chunks.divide(static_cast<int>(blockIdx.x), chunk);
  rest = params.window_groups.divide(rest, place.window_group);
  place.split = params.column_tiles.divide(rest, place.column_tile);
  place.channel = chunk * params.chunk_channels;
  place.q = place.column_tile * params.tile_columns;
  place.columns = min(params.tile_columns, problem.q - place.q);
  const int left = place.q * problem.stride_w - problem.pad_left;
  const int right = left + (place.columns - 1) * problem.stride_w + (problem.s - 1) * problem.dilation_w + 1;
  place.w = Tile::kChannelsLast ? max(left, 0) : 0;
  place.x_columns = Tile::kChannelsLast ? max(min(right, problem.w) - place.w, 0) : problem.w;

  const int thread = static_cast<int>(threadIdx.x);
  const int high = thread >> (Tile::kChannelsLast ? params.lane_bits : params.worker_bits);
  const int lanes = (1 << params.lane_bits) - 1, workers = (1 << params.worker_bits) - 1;
  place.lane = (Tile::kChannelsLast ? thread : high) & lanes;
  place.worker = (Tile::kChannelsLast ? high : thread) & workers;
  place.window = thread >> (params.lane_bits + params.worker_bits);
  return place;
}

struct Stage {
  int n, images;
  int p, rows;    // of dy
  int h, x_rows;  // of x
  int fresh;      // rows of x that the stage before has not brought begin here
  int ring;       // where row h of image n lies in the ring
};

__device__ inline Stage stage_at(const DepthwiseSweepParams& params, int stage) {
  const Conv2dProblem& problem = params.problem;
  Stage result;
  int strip;
  result.n = params.strips.divide(stage, strip) * params.stage_images;
  result.images = min(params.stage_images, problem.n - result.n);
  result.p = strip * params.stage_rows;
  result.rows = min(params.stage_rows, problem.p - result.p);
  const int top = result.p * problem.stride_h - problem.pad_top;
  const int bottom = top + (result.rows - 1) * problem.stride_h + (problem.r - 1) * problem.dilation_h + 1;
  result.h = max(top, 0);
  result.x_rows = max(min(bottom, problem.h) - result.h, 0);
  result.fresh = result.h;
  result.ring = 0;
  return result;
}

// NHWC: the stage that follows in the same block's range.
__device__ inline Stage stage_after(const DepthwiseSweepParams& params, const Stage& last, int stage) {
  Stage result = stage_at(params, stage);
  if (result.p == 0) {
    result.ring = last.ring + last.images * last.x_rows;
  } else {
    const int end = last.h + last.x_rows;
    result.ring = last.ring + min(result.h, end) - last.h;
    result.fresh = max(result.h, end);
  }
  if (result.ring >= params.x_ring) result.ring -= params.x_ring;
  return result;
}

// Calls f(place in the arena, offset in the tensor) for every 16 bytes of a box of pixels that this thread
// brings. In the tensor the box starts at `offset`; in the arena at `at`, rows `row` elements apart, images
// densely, and from `ring_end` on again at the ring's start.
template <class T, class F>
__device__ inline void for_box(const DepthwiseSweepParams& params, const Place& place, const TensorView& view,
                               int64_t offset, int images, int rows, int columns, int at, int row,
                               int ring_end, int ring_size, F&& f) {
  const int vectors = params.chunk_channels / kPer16<T>;
  const int vector = static_cast<int>(threadIdx.x) & (vectors - 1);
  if (place.channel + vector * kPer16<T> >= params.problem.c) return;
  const int bits = __ffs(vectors) - 1;
  const int first = static_cast<int>(threadIdx.x) >> bits;
  const int step = static_cast<int>(blockDim.x) >> bits;
  // What lies dense here and there counts as one long row.
  if (row == columns * params.chunk_channels && view.stride_h == columns * view.stride_w) {
    columns *= rows;
    row *= rows;
    rows = 1;
    if (view.stride_n == columns * view.stride_w) {
      columns *= images;
      images = 1;
    }
  }
  for (int image = 0; image < images; ++image) {
    for (int r = 0; r < rows; ++r) {
      int64_t from =
          offset + image * view.stride_n + r * view.stride_h + first * view.stride_w + vector * kPer16<T>;
      int to = at + first * params.chunk_channels + vector * kPer16<T>;
      for (int column = first; column < columns; column += step) {
        f(to >= ring_end ? to - ring_size : to, from);
        to += step * params.chunk_channels;
        from += step * view.stride_w;
      }
      at += row;
    }
  }
}

// NCHW: the same for the runs of some images, `length` elements each, that start at `offset` in the first.
// Also tells how many of the 8 or 4 elements lie within the tensor's `total`.
template <class T, class F>
__device__ inline void for_runs(const TensorView& view, int64_t offset, int64_t total, int images, int length,
                                int at, int image_step, F&& f) {
  for (int image = 0; image < images; ++image) {
    const int64_t begin = offset + image * view.stride_n;
    const int shift = static_cast<int>(begin & (kPer16<T> - 1));
    const int64_t first = begin - shift;
    for (int i = static_cast<int>(threadIdx.x) * kPer16<T>; i < shift + length;
         i += static_cast<int>(blockDim.x) * kPer16<T>) {
      f(at + i, first + i, static_cast<int>(min(total - first - i, static_cast<int64_t>(kPer16<T>))));
    }
    at += image_step;
  }
}

// Starts the copy of 16 bytes, or copies the last elements of a tensor.
template <class T>
__device__ inline void bring(Arena<T>& arena, int at, const T* from, int elements) {
  if (elements == kPer16<T>) {
    ptx::cp_async<16>(arena.address(at), from);
    return;
  }
  for (int i = 0; i < kPer16<T>; ++i) arena.store(at + i, load_global_if(i < elements, from + i));
}

// Calls f(place in the arena, offset in the tensor, elements) for all that this thread brings of a stage's x,
// or of its dy.
template <class T, class Tile, class F>
__device__ inline void for_x(const DepthwiseSweepParams& params, const Place& place, const Stage& stage,
                             int buffer, F&& f) {
  const TensorView& x = params.x;
  const int64_t image = stage.n * x.stride_n;
  if constexpr (Tile::kChannelsLast) {
    const int rows = stage.h + stage.x_rows - stage.fresh;
    const int slot = stage.ring + stage.fresh - stage.h;
    const int ring = params.x_ring * params.x_row;
    for_box<T>(params, place, x, image + stage.fresh * x.stride_h + place.w * x.stride_w + place.channel,
               stage.images, rows, place.x_columns,
               (slot >= params.x_ring ? slot - params.x_ring : slot) * params.x_row, params.x_row, ring, ring,
               [&](int to, int64_t from) { f(to, from, kPer16<T>); });
  } else {
    const int plane = params.problem.h * params.problem.w;
    const int planes = min(params.chunk_channels, params.problem.c - place.channel);
    for_runs<T>(x,
                image + static_cast<int64_t>(place.channel) * plane +
                    static_cast<int64_t>(stage.h) * params.problem.w,
                params.x_elements, stage.images, (planes - 1) * plane + stage.x_rows * params.problem.w,
                buffer * params.stage_images * params.x_image, params.x_image, f);
  }
}

template <class T, class Tile, class F>
__device__ inline void for_dy(const DepthwiseSweepParams& params, const Place& place, const Stage& stage,
                              int buffer, F&& f) {
  const TensorView& dy = params.dy;
  const int64_t image = stage.n * dy.stride_n;
  const int start = params.dy_start + buffer * params.dy_buffer;
  if constexpr (Tile::kChannelsLast) {
    for_box<T>(params, place, dy, image + stage.p * dy.stride_h + place.q * dy.stride_w + place.channel,
               stage.images, stage.rows, place.columns, start, params.dy_row, INT_MAX, 0,
               [&](int to, int64_t from) { f(to, from, kPer16<T>); });
  } else {
    const int plane = params.problem.p * params.problem.q;
    const int planes = min(params.chunk_channels, params.problem.c - place.channel);
    for_runs<T>(dy, image + static_cast<int64_t>(place.channel) * plane + stage.p * params.problem.q,
                params.dy_elements, stage.images, (planes - 1) * plane + stage.rows * params.problem.q, start,
                params.dy_image, f);
  }
}

template <class T, class Tile>
__device__ inline void bring_stage(Arena<T>& arena, const DepthwiseSweepParams& params, const Place& place,
                                   const Stage& stage, int buffer) {
  for_x<T, Tile>(params, place, stage, buffer, [&](int to, int64_t from, int elements) {
    bring(arena, to, static_cast<const T*>(params.x.data) + from, elements);
  });
  const T* const saved = static_cast<const T*>(params.activation.saved);
  for_dy<T, Tile>(params, place, stage, buffer, [&](int to, int64_t from, int elements) {
    bring(arena, to, static_cast<const T*>(params.dy.data) + from, elements);
    if (saved != nullptr) bring(arena, to + params.saved_start, saved + from, elements);
  });
  ptx::cp_async_commit();
}

// Takes what this thread brought of dy through the activation's backward, where it lies.
template <class T, class Tile>
__device__ inline void activate_stage(Arena<T>& arena, const DepthwiseSweepParams& params, const Place& place,
                                      const Stage& stage, int buffer) {
  for_dy<T, Tile>(params, place, stage, buffer, [&](int at, int64_t, int) {
    const auto dy = arena.template load_vector<kPer16<T>>(at);
    const auto saved = arena.template load_vector<kPer16<T>>(at + params.saved_start);
    arena.template store_vector<kPer16<T>>(at, through_activation(params.activation, dy, saved));
  });
}

// The elements as floats, one instruction each.
template <int V, class T>
__device__ inline void widen(const Vector<T, V>& from, float (&to)[V]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && V % 2 == 0) {
#pragma unroll
    for (int v = 0; v < V; v += 2) {
      uint32_t pair;
      memcpy(&pair, &from[v], sizeof(pair));
      const uint32_t low = pair << 16, high = pair & 0xffff0000u;
      memcpy(&to[v], &low, sizeof(low));
      memcpy(&to[v + 1], &high, sizeof(high));
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = to_accumulator(from[v]);
  }
}

// Rows of one column of dy, and the pixel of x that the window's first tap meets at the first of them.
struct Item {
  int dy, dy_step, rows;
  int x, x_step, ring_end, ring_size;  // the row of x, before the ring's wrap
  int x_first;                         // the image's first row
  int x_column;                        // from the row's start; negative left of it
  int h, tap_step, x_rows;             // counted within the stage
  int w, dilation_w, x_columns;
  int column_step;  // of x, in elements
  int tap_columns;
  bool sums_bias;
};

// kInside: all rows of dy exist, and all rows of x lie in the image. Else rows of x outside count as zeros,
// which takes finite numbers in dy.
template <bool kInside, class T, class Tile>
__device__ inline void sum_rows(const Arena<T>& arena, const Item& item,
                                const float (&dy)[Tile::kRows][Tile::kVector], Sums<Tile>& sums) {
  constexpr int V = Tile::kVector, kXRows = Tile::kXRows;
  int row[kXRows];
#pragma unroll
  for (int m = 0; m < kXRows; ++m) {
    const bool exists = kInside || within(item.h + m * item.tap_step, item.x_rows);
    const int at = exists ? item.x + m * item.x_step : item.x_first;
    row[m] = (at >= item.ring_end ? at - item.ring_size : at) + item.x_column;
  }
#pragma unroll
  for (int s = 0; s < Tile::kWindow; ++s) {
    if (!within(item.w + s * item.dilation_w, item.x_columns)) continue;
    if (!Tile::kWhole && s >= item.tap_columns) continue;
#pragma unroll
    for (int m = 0; m < kXRows; ++m) {
      Vector<T, V> loaded = arena.template load_vector<V>(row[m] + s * item.column_step);
      if (!kInside && !within(item.h + m * item.tap_step, item.x_rows)) memset(&loaded, 0, sizeof(loaded));
      float x[V];
      widen(loaded, x);
#pragma unroll
      for (int k = 0; k < Tile::kRows; ++k) {
        const int r = m - k * Tile::kStride;
        if (r < 0 || r >= Tile::kWindow || (!kInside && k >= item.rows)) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) sums.weight[r][s][v] += x[v] * dy[k][v];
      }
    }
  }
}

// The same one row of dy after the other, and only with what exists.
template <class T, class Tile>
__device__ inline void sum_each_row(const Arena<T>& arena, const Item& item, Sums<Tile>& sums) {
  constexpr int V = Tile::kVector;
  for (int k = 0; k < item.rows; ++k) {
    float dy[V];
    widen(arena.template load_vector<V>(item.dy + k * item.dy_step), dy);
#pragma unroll
    for (int r = 0; r < Tile::kWindow; ++r) {
      const int m = k * Tile::kStride + r;
      if (!within(item.h + m * item.tap_step, item.x_rows)) continue;
      const int at = item.x + m * item.x_step;
      const int row = (at >= item.ring_end ? at - item.ring_size : at) + item.x_column;
#pragma unroll
      for (int s = 0; s < Tile::kWindow; ++s) {
        if (!within(item.w + s * item.dilation_w, item.x_columns)) continue;
        float x[V];
        widen(arena.template load_vector<V>(row + s * item.column_step), x);
#pragma unroll
        for (int v = 0; v < V; ++v) sums.weight[r][s][v] += x[v] * dy[v];
      }
    }
  }
}

// inside: as kInside.
template <class T, class Tile>
__device__ inline void sum_item(const Arena<T>& arena, const Item& item, bool inside, Sums<Tile>& sums) {
  constexpr int V = Tile::kVector, kRows = Tile::kRows;
  float dy[kRows][V];
  float not_finite = 0;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    // Rows that do not exist are zeros.
    const bool exists = k < item.rows;
    Vector<T, V> loaded = arena.template load_vector<V>(exists ? item.dy + k * item.dy_step : item.dy);
    if (!exists) memset(&loaded, 0, sizeof(loaded));
    widen(loaded, dy[k]);
  }
  if (item.sums_bias) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums.bias[v] += dy[k][v];
    }
  }
  if (inside) {
    sum_rows<true, T>(arena, item, dy, sums);
    return;
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) not_finite += dy[k][v] * 0.0f;
  }
  if (not_finite == 0 && item.x_rows > 0) {
    sum_rows<false, T>(arena, item, dy, sums);
  } else {
    sum_each_row<T>(arena, item, sums);
  }
}

// Where rows `p` and on of dy of the stage's image and their rows of x lie in the arena.
template <class T, class Tile>
__device__ inline void place_rows(const DepthwiseSweepParams& params, const Place& place, const Stage& stage,
                                  int buffer, int image, int p, Item& item) {
  const Conv2dProblem& problem = params.problem;
  item.dy = params.dy_start + buffer * params.dy_buffer + image * params.dy_image + p * params.dy_row;
  if constexpr (Tile::kChannelsLast) {
    item.dy += place.lane * Tile::kVector;
    item.x_first = (stage.ring + image * stage.x_rows) * params.x_row;
  } else {
    const int n = stage.n + image;
    const int x_plane = problem.h * problem.w, dy_plane = problem.p * problem.q;
    const int64_t x_begin = n * params.x.stride_n + static_cast<int64_t>(place.channel) * x_plane +
                            static_cast<int64_t>(stage.h) * problem.w;
    const int64_t dy_begin = n * params.dy.stride_n + static_cast<int64_t>(place.channel) * dy_plane +
                             static_cast<int64_t>(stage.p) * problem.q;
    item.x_first = (buffer * params.stage_images + image) * params.x_image + place.lane * x_plane +
                   static_cast<int>(x_begin & (kPer16<T> - 1));
    item.dy += place.lane * dy_plane + static_cast<int>(dy_begin & (kPer16<T> - 1));
  }
  item.x = item.x_first + item.h * params.x_row;
}

template <class T, class Tile>
__device__ inline void sum_stage(const Arena<T>& arena, const DepthwiseSweepParams& params,
                                 const Place& place, const Stage& stage, int buffer, int first_r, int first_s,
                                 Sums<Tile>& sums) {
  const Conv2dProblem& problem = params.problem;
  Item item;
  item.dy_step = params.row_step * params.dy_row;
  item.x_step = params.tap_step * params.x_row;
  item.ring_end = Tile::kChannelsLast ? params.x_ring * params.x_row : INT_MAX;
  item.ring_size = Tile::kChannelsLast ? item.ring_end : 0;
  item.tap_step = params.tap_step;
  item.x_rows = stage.x_rows;
  item.x_columns = place.x_columns;
  item.column_step = problem.dilation_w * params.x_column;
  item.dilation_w = problem.dilation_w;
  item.tap_columns = problem.s - first_s;
  item.sums_bias = params.bias_grad != nullptr;

  // A set is the items of the same rows; a worker takes every so many-th item of all sets.
  const int workers = 1 << params.worker_bits;
  const int sets = stage.images * params.item_strips.divisor();
  const int left = place.q * problem.stride_w - problem.pad_left + first_s * problem.dilation_w - place.w;
  const int first_x = (Tile::kChannelsLast ? place.lane * Tile::kVector : 0) + left * params.x_column;
  int column;
  int set = params.item_columns.divide(place.worker, column);
  while (set < sets) {
    int strip, phase;
    const int image = params.item_strips.divide(set, strip);
    const int p =
        params.item_phases.divide(strip, phase) * Tile::kRows * params.row_step + phase;  // of the stage
    item.rows = p < stage.rows ? min(params.item_phases.divide(stage.rows - p - 1) + 1, Tile::kRows) : 0;
    item.h = (stage.p + p) * problem.stride_h - problem.pad_top + first_r * problem.dilation_h - stage.h;
    place_rows<T, Tile>(params, place, stage, buffer, image, p, item);
    const int first_dy = item.dy;
    const bool inside =
        item.rows >= Tile::kRows && item.h >= 0 && item.h + (Tile::kXRows - 1) * item.tap_step < item.x_rows;
    for (; column < params.tile_columns; column += workers) {
      if (column >= place.columns || item.rows == 0) continue;
      item.w = left + column * problem.stride_w;
      item.dy = first_dy + column * params.dy_column;
      item.x_column = first_x + column * problem.stride_w * params.x_column;
      sum_item<T>(arena, item, inside, sums);
    }
    set += params.item_columns.divide(column, column);
  }
}

// Adds the workers' sums, in a fixed order, and writes them: to the split's partial sums, or as results.
template <class T, class Tile>
__device__ inline void store_sums(const DepthwiseSweepParams& params, const Place& place, Sums<Tile>& sums) {
  constexpr int V = Tile::kVector, kTaps = Tile::kWindow * Tile::kWindow;
  constexpr int kAll = Tile::kSums + V;  // [v][tap], then the bias gradient's [v]
  // Within the warp.
  const int first_bit = Tile::kChannelsLast ? params.lane_bits : 0;
  const int last_bit = min(first_bit + params.worker_bits, 5);
  for (int bit = first_bit; bit < last_bit; ++bit) {
    const auto add = [&](float& sum) { sum += __shfl_xor_sync(0xffffffffu, sum, 1 << bit); };
#pragma unroll
    for (int r = 0; r < Tile::kWindow; ++r) {
#pragma unroll
      for (int s = 0; s < Tile::kWindow; ++s) {
#pragma unroll
        for (int v = 0; v < V; ++v) add(sums.weight[r][s][v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) add(sums.bias[v]);
  }
  // Across warps: those that share the sums are neighbours.
  const int slot_bits = 5 - (last_bit - first_bit);
  const int warp_bits = first_bit + params.worker_bits - last_bit;
  const int thread_lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int slot = Tile::kChannelsLast ? thread_lane & ((1 << slot_bits) - 1) : thread_lane >> last_bit;
  const bool writes =
      thread_lane == (Tile::kChannelsLast ? slot : slot << last_bit);  // the first of the warp's workers
  auto& shared = shared_memory<SumsShared>().sums;
  __syncthreads();
  if (writes) {
    const auto put = [&](int sum, float value) {
      shared.store(((warp * kAll + sum) << slot_bits) + slot, value);
    };
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int r = 0; r < Tile::kWindow; ++r) {
#pragma unroll
        for (int s = 0; s < Tile::kWindow; ++s) {
          put(v * kTaps + r * Tile::kWindow + s, sums.weight[r][s][v]);
        }
      }
      put(Tile::kSums + v, sums.bias[v]);
    }
  }
  __syncthreads();

  const Conv2dProblem& problem = params.problem;
  const int taps = problem.r * problem.s;
  const int64_t weights = static_cast<int64_t>(problem.c) * taps;
  const int64_t split = static_cast<int64_t>(place.split) * params.column_tiles.divisor() + place.column_tile;
  float* const partials =
      params.partials == nullptr
          ? nullptr
          : params.partials + split * (weights + (params.bias_grad == nullptr ? 0 : problem.c));
  const int results = (static_cast<int>(blockDim.x) >> (5 + warp_bits) << slot_bits) * kAll;
  for (int result = static_cast<int>(threadIdx.x); result < results; result += static_cast<int>(blockDim.x)) {
    const int sum = result % kAll, owner = result / kAll;
    const int owner_slot = owner & ((1 << slot_bits) - 1), owner_warp = owner >> slot_bits << warp_bits;
    const int thread = owner_warp * 32 + (Tile::kChannelsLast ? owner_slot : owner_slot << last_bit);
    const int lane =
        (Tile::kChannelsLast ? thread : thread >> params.worker_bits) & ((1 << params.lane_bits) - 1);
    const int window =
        place.window_group * params.block_windows + (thread >> (params.lane_bits + params.worker_bits));
    const bool is_bias = sum >= Tile::kSums;
    const int channel = place.channel + lane * V + (is_bias ? sum - Tile::kSums : sum / kTaps);
    if (channel >= problem.c || window >= params.windows) continue;
    float total = 0;
    for (int w = 0; w < 1 << warp_bits; ++w) {
      total += shared.load((((owner_warp + w) * kAll + sum) << slot_bits) + owner_slot);
    }
    if (is_bias) {
      if (params.bias_grad == nullptr || window != 0) continue;
      if (partials == nullptr) {
        store_global(static_cast<T*>(params.bias_grad) + channel, from_accumulator<T>(total));
      } else {
        store_global(partials + weights + channel, total);
      }
      continue;
    }
    int window_column = 0;
    const int window_row = Tile::kWhole ? 0 : params.window_columns.divide(window, window_column);
    const int r = window_row * Tile::kWindow + sum % kTaps / Tile::kWindow;
    const int s = window_column * Tile::kWindow + sum % Tile::kWindow;
    if (r >= problem.r || s >= problem.s) continue;
    if (partials == nullptr) {
      const TensorView& dw = params.output;
      store_global(static_cast<T*>(dw.data) + channel * dw.stride_n + r * dw.stride_h + s * dw.stride_w,
                   from_accumulator<T>(total));
    } else {
      store_global(partials + static_cast<int64_t>(channel) * taps + r * problem.s + s, total);
    }
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    sweep_kernel(const __grid_constant__ DepthwiseSweepParams params) {
  auto& arena = shared_memory<StageShared<T>>().arena;
  const Place place = place_of<Tile>(params);
  int first_r = 0, first_s = 0;
  bool active = place.channel + place.lane * Tile::kVector < params.problem.c;
  if constexpr (!Tile::kWhole) {
    const int window = place.window_group * params.block_windows + place.window;
    int column;
    first_r = params.window_columns.divide(window, column) * Tile::kWindow;
    first_s = column * Tile::kWindow;
    active = active && window < params.windows;
  }

  Sums<Tile> sums;
  const int begin = place.split * params.split_stages;
  const int end = min(begin + params.split_stages, params.stages);
  Stage stage = stage_at(params, begin);
  bring_stage<T, Tile>(arena, params, place, stage, 0);
  for (int at = begin; at < end; ++at) {
    const int buffer = (at - begin) & 1;
    ptx::cp_async_wait<0>();
    if (params.activation.saved != nullptr) activate_stage<T, Tile>(arena, params, place, stage, buffer);
    __syncthreads();
    Stage next = stage;
    if (at + 1 < end) {
      next = stage_after(params, stage, at + 1);
      bring_stage<T, Tile>(arena, params, place, next, buffer ^ 1);
    }
    if (active) sum_stage<T, Tile>(arena, params, place, stage, buffer, first_r, first_s, sums);
    stage = next;
  }
  store_sums<T, Tile>(params, place, sums);
}

}  // namespace fastcnn::sweep
