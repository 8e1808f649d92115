// Depthwise fprop and dgrad in tiles, dense NCHW: K x K taps, K = 3, 5, 7, no dilation (depthwise_image.h has
// the problem).
//
// Walk: a block takes whole planes, or a strip of rows of one. Either way its sources are one run of bytes,
// which comes 16 bytes a load whatever the width of the image, four loads a thread under way; they go to
// shared memory as floats, in rows with their padding. A thread makes rows x columns targets of one plane: it
// reads each source of its window once for all of them, weights and sums stay in registers. Then the targets
// take the sources' place in shared memory, and leave as a run of bytes again, 16 bytes a store, through the
// epilogue.
//
// Floor: bytes = source + target once each; flops = 2*K*K per y. Read beyond it: the halo rows at which
// strips meet, up to 30 bytes a block of its neighbours', weights once a block. Bound: at 3x3, stride 1, a
// target takes 9 products and 2 reads of shared memory, and its source about 6 instructions on its way there:
// memory. 5x5 and 7x7 in half precision are bound by issue, as in depthwise_strip.cuh. Blocks are small, so
// that others load while one computes. Registers (ptxas, sm_90a, bfloat16): 75 at 3x3, 80 at 5x5, 123 at 7x7:
// six to four blocks of 128 threads. Why floats with padding: as they lie in memory, each read would take a
// conversion, and a predicate that tells the next row's elements from padding. A thread's columns and the
// pitch of rows are odd numbers: the lanes of a warp read from different banks. A thread whose weights are
// not all finite leaves out the padding tap by tap.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_axis.cuh"
#include "conv2d/depthwise_shape.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"

namespace fastcnn {

template <int K>
struct DepthwiseTileShared {
  SharedArray<float, kDepthwiseTilePlanes * K * K> weights;  // [plane][tap]
  // [plane][row][column] of the source, then the targets as they lie in memory.
  SharedArray<float, kDepthwiseTileFloats + 8> tile;
};

static_assert(sizeof(DepthwiseTileShared<7>) == depthwise_tile_bytes(7));

// A block's planes and rows, and where they lie in shared memory.
struct DepthwiseTilePlace {
  int plane;
  int planes;
  DepthwiseSpan rows;
  DepthwiseSpan columns;
  int first_row;  // of each plane: the source in its first row of shared memory, and how many there are
  int plane_rows;

  __device__ DepthwiseTilePlace(const DepthwiseTileParams& params, const DepthwiseThreadShape& shape,
                                int rest)
      : rows(params.image.rows, shape.advance(params.image.rows.block), rest),
        columns(params.image.columns, 0, rest) {
    plane = rest * params.block_planes;
    planes = min(params.block_planes, params.planes - plane);
    rows.clip(shape);
    // Planes that come together come whole, rows that no target sees included.
    const bool whole = params.block_planes > 1;
    first_row = whole ? -rows.origin : rows.low;
    plane_rows = whole ? params.image.rows.source : max(rows.high - rows.low, 0);
  }
};

// The run of sources of a block as it lies in the tensor, and its way to shared memory.
template <class T, int K>
struct DepthwiseTileRun {
  static constexpr int V = 16 / sizeof(T);

  DepthwiseTileShared<K>& shared;
  const DepthwiseTileParams& params;
  int64_t begin;  // the run's first element in the tensor
  int count;      // its elements
  int shift;      // of them to the 16 bytes in which it begins
  int width;
  int origin;
  bool cropped;  // some columns of the source have no place in shared memory

  __device__ DepthwiseTileRun(DepthwiseTileShared<K>& shared, const DepthwiseTileParams& params,
                              const DepthwiseTilePlace& place)
      : shared(shared), params(params), width(params.image.columns.source), origin(place.columns.origin) {
    begin =
        (static_cast<int64_t>(place.plane) * params.image.rows.source + place.rows.origin + place.first_row) *
        width;
    count = place.planes * place.plane_rows * width;
    shift = static_cast<int>(begin % V);
    cropped = origin > 0 || width - origin > params.pitch;
  }

  // N neighbouring elements from number `at` of the run on, of which the first may come before it.
  template <int N>
  __device__ void scatter(int at, const Vector<T, N>& values) const {
    int column;
    const int row = params.source_columns.divide(max(at, 0), column);
    column += min(at, 0);
    int to = row * params.pitch + column - origin;
    const bool checked = cropped || at < 0 || at + N > count;
#pragma unroll
    for (int v = 0; v < N; ++v, ++column, ++to) {
      if (column == width) {
        column = 0;
        to += params.pitch - width;
      }
      const int in_row = column - origin;
      if (!checked || (at + v >= 0 && at + v < count && in_row >= 0 && in_row < params.pitch)) {
        shared.tile.store(to, to_accumulator(values[v]));
      }
    }
  }

  // kLoads loads of a thread under way.
  template <int kLoads, bool kActivation>
  __device__ void fetch() const {
    const DepthwiseImageParams& image = params.image;
    const T* const data = static_cast<const T*>(image.source.data);
    const auto load = [&](auto width_tag, bool predicate, int64_t offset) {
      constexpr int N = decltype(width_tag)::value;
      if constexpr (kActivation) {
        return load_grad_if<N>(predicate, image.grad_activation, data, offset);
      } else {
        return load_global_if<N>(predicate, data + offset);
      }
    };
    // The tensor's last elements do not come in 16 bytes.
    const int64_t total = static_cast<int64_t>(params.planes) * image.rows.source * width;
    const int whole = static_cast<int>(min(static_cast<int64_t>(count), total / V * V - begin));
    const int step = static_cast<int>(blockDim.x) * V;
    for (int start = static_cast<int>(threadIdx.x) * V - shift; start < whole; start += kLoads * step) {
      Vector<T, V> loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int at = start + i * step;
        loaded[i] = load(std::integral_constant<int, V>{}, at < whole, begin + at);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (start + i * step < whole) scatter<V>(start + i * step, loaded[i]);
      }
    }
    const int last = whole + static_cast<int>(threadIdx.x);
    if (last < count) {
      scatter<1>(last, load(std::integral_constant<int, 1>{}, true, begin + last));
    }
  }
};

// Brings the sources of the block's planes, and zeros beside them.
template <class T, int K>
__device__ inline void fetch_tile(DepthwiseTileShared<K>& shared, const DepthwiseTileParams& params,
                                  const DepthwiseTilePlace& place) {
  const DepthwiseTileRun<T, K> run(shared, params, place);
  if (params.image.grad_activation.saved == nullptr) {
    run.template fetch<4, false>();
  } else {
    run.template fetch<1, true>();
  }
  const int origin = run.origin, width = run.width;
  const int left = min(max(-origin, 0), params.pitch), right = min(max(width - origin, left), params.pitch);
  for (int row = static_cast<int>(threadIdx.x); row < place.planes * place.plane_rows;
       row += static_cast<int>(blockDim.x)) {
    for (int i = 0; i < left; ++i) shared.tile.store(row * params.pitch + i, 0.0f);
    for (int i = right; i < params.pitch; ++i) shared.tile.store(row * params.pitch + i, 0.0f);
  }
}

// Writes the block's targets, which lie in shared memory as in the tensor, at the same place within 16 bytes.
template <class T, int K>
__device__ inline void write_tile(const DepthwiseTileShared<K>& shared, const DepthwiseImageParams& image,
                                  int64_t first, int shift, int count) {
  constexpr int V = 16 / sizeof(T);
  T* const output = static_cast<T*>(image.target.data) + first;
  for (int at = static_cast<int>(threadIdx.x) * V; at < shift + count;
       at += static_cast<int>(blockDim.x) * V) {
    if (at >= shift && at + V <= shift + count) {
      const Vector<float, V> loaded = shared.tile.template load_vector<V>(at);
      float sum[V];
      const float none[V] = {};
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = loaded[v];
      store_global<V>(output + at, finish<T>(image.epilogue, sum, none, first + at));
    } else {
      for (int i = max(at, shift); i < min(at + V, shift + count); ++i) {
        const float sum[1] = {shared.tile.load(i)};
        const float none[1] = {};
        store_global<1>(output + i, finish<T>(image.epilogue, sum, none, first + i));
      }
    }
  }
}

// What a window's columns or rows hold of the source.
struct DepthwiseInside {
  int low, high;
};

// A target whose weights are not all finite: padding is left out, tap by tap.
template <int K, DepthwiseStep kStep>
[[gnu::noinline]] __device__ float careful_sum(const DepthwiseTileShared<K>& shared, int corner, int pitch,
                                               int weight, int i, int u, DepthwiseInside rows,
                                               DepthwiseInside columns, float sum) {
  constexpr DepthwiseThreadShape kShape = depthwise_tile_shape(K, kStep);
#pragma unroll 1
  for (int j = rows.low; j < rows.high; ++j) {
    const int r = kShape.tap(i, j);
    if (r < 0 || r >= K) continue;
#pragma unroll 1
    for (int c = columns.low; c < columns.high; ++c) {
      const int s = kShape.tap(u, c);
      if (s < 0 || s >= K) continue;
      sum += shared.tile.load(corner + j * pitch + c) * shared.weights.load(weight + r * K + s);
    }
  }
  return sum;
}

template <class T, int K, DepthwiseStep kStep>
__global__ void __launch_bounds__(kDepthwiseTileThreads, 4)
    depthwise_tile(const __grid_constant__ DepthwiseTileParams params) {
  constexpr DepthwiseThreadShape kShape = depthwise_tile_shape(K, kStep);
  constexpr int kRows = kShape.rows;
  constexpr int kColumns = kShape.columns;
  auto& shared = shared_memory<DepthwiseTileShared<K>>();
  const DepthwiseImageParams& image = params.image;
  const DepthwiseTilePlace place(params, kShape, static_cast<int>(blockIdx.x));
  const auto channel_of = [&](int plane) {
    int channel;
    params.channels.divide(place.plane + plane, channel);
    return channel;
  };

  fetch_tile<T, K>(shared, params, place);
  for (int i = static_cast<int>(threadIdx.x); i < place.planes * K * K; i += static_cast<int>(blockDim.x)) {
    const int plane = i / (K * K), tap = i % (K * K);
    const int64_t from = channel_of(plane) * image.weight.stride_n + tap / K * image.weight.stride_h +
                         tap % K * image.weight.stride_w;
    shared.weights.store(plane * K * K + (image.flip ? K * K - 1 - tap : tap),
                         to_accumulator(load_global(static_cast<const T*>(image.weight.data) + from)));
  }
  __syncthreads();

  int group, row_group;
  const int plane =
      params.row_groups.divide(params.groups.divide(static_cast<int>(threadIdx.x), group), row_group);
  const int row = row_group * kRows, column = group * kColumns;
  const bool active = plane < place.planes && row < place.rows.count;
  float sum[kRows][kColumns];
  if (active) {
    const int weight_at = plane * K * K;
    float weight[K * K];
    float zero = 0;  // NaN where a weight is not finite
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap) {
      weight[tap] = shared.weights.load(weight_at + tap);
      zero += weight[tap] * 0.0f;
    }
    const float bias = kShape.transposed() ? 0.0f : load_bias<T>(image.epilogue, channel_of(plane));
    const int first_row = kShape.advance(row), first_column = kShape.advance(column);
    const int corner = (plane * place.plane_rows + first_row - place.first_row) * params.pitch + first_column;
    if (zero == 0) {
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) sum[i / kColumns][i % kColumns] = bias;
#pragma unroll
      for (int j = 0; j < kShape.sources(kRows); ++j) {
        if (first_row + j < place.rows.low || first_row + j >= place.rows.high) continue;
        const int at = corner + j * params.pitch;
#pragma unroll
        for (int c = 0; c < kShape.sources(kColumns); ++c) {
          const float x = shared.tile.load(at + c);
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const int r = kShape.tap(i, j);
            if (r < 0 || r >= K) continue;
#pragma unroll
            for (int u = 0; u < kColumns; ++u) {
              const int s = kShape.tap(u, c);
              if (s >= 0 && s < K) sum[i][u] += x * weight[r * K + s];
            }
          }
        }
      }
    } else {
      const DepthwiseInside rows{max(place.rows.low - first_row, 0),
                                 min(place.rows.high - first_row, kShape.sources(kRows))};
      const DepthwiseInside columns{max(place.columns.low - first_column, 0),
                                    min(place.columns.high - first_column, kShape.sources(kColumns))};
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) {
        sum[i / kColumns][i % kColumns] = careful_sum<K, kStep>(
            shared, corner, params.pitch, weight_at, i / kColumns, i % kColumns, rows, columns, bias);
      }
    }
  }
  __syncthreads();

  // Targets that exist: a transposed block's first row and column may not.
  const int skipped_rows = max(-place.rows.target, 0), skipped_columns = max(-place.columns.target, 0);
  const int target_rows = place.rows.count - skipped_rows;
  const int width = image.columns.target;
  const int64_t begin =
      (static_cast<int64_t>(place.plane) * image.rows.target + place.rows.target + skipped_rows) * width;
  constexpr int V = 16 / sizeof(T);
  const int64_t first = begin / V * V;
  const int shift = static_cast<int>(begin - first);
  if (active) {
    const int start = shift + (plane * target_rows + row - skipped_rows) * width + column - skipped_columns;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (row + i < skipped_rows || row + i >= place.rows.count) continue;
#pragma unroll
      for (int u = 0; u < kColumns; ++u) {
        if (column + u >= skipped_columns && column + u < place.columns.count) {
          shared.tile.store(start + i * width + u, sum[i][u]);
        }
      }
    }
  }
  __syncthreads();
  write_tile<T, K>(shared, image, first, shift, place.planes * target_rows * width);
}

template <class T, int K>
void launch_depthwise_tile_kernel(const DepthwiseTileParams& params, const DepthwiseImagePlan& plan,
                                  cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(DepthwiseTileShared<K>);
  config.stream = stream;
  const auto kernel = plan.step == DepthwiseStep::kOne   ? depthwise_tile<T, K, DepthwiseStep::kOne>
                      : plan.step == DepthwiseStep::kTwo ? depthwise_tile<T, K, DepthwiseStep::kTwo>
                                                         : depthwise_tile<T, K, DepthwiseStep::kTransposed>;
  launch(("conv2d::" + plan.kernel).c_str(), kernel, config, params);
}

template <class T>
void launch_depthwise_tile(const DepthwiseTileParams& params, const DepthwiseImagePlan& plan, int kernel,
                           cudaStream_t stream) {
  if (kernel == 3) return launch_depthwise_tile_kernel<T, 3>(params, plan, stream);
  if (kernel == 5) return launch_depthwise_tile_kernel<T, 5>(params, plan, stream);
  launch_depthwise_tile_kernel<T, 7>(params, plan, stream);
}

}  // namespace fastcnn
