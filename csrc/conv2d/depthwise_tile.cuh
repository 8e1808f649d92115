// Depthwise fprop and dgrad in tiles, dense NCHW: K x K taps, K = 3, 5, 7 (depthwise_image.h has the
// problem).
//
// Walk: a block takes whole planes, or a strip of rows of one: then its sources are one run of bytes. Where
// planes are too large for that and wide, or their rows dilated, it takes parts of rows instead, of one class
// of rows: the rows between come to other blocks, or to none. Either way sources come 16 bytes a load
// whatever the width of the image, several loads a thread under way; they go to shared memory as floats, in
// rows with their padding, dilated columns sorted by class: from there on no thread's columns know of
// dilation. A thread makes rows x columns targets of a class of one plane: it reads each source of its window
// once for all of them, weights and sums stay in registers. Then the targets take the sources' place in
// shared memory, as they lie in the tensor, and leave 16 bytes a store, through the epilogue. dgrad at a
// stride that divides the dilation has threads (or blocks) of classes that no tap meets: they write zeros.
//
// Floor: bytes = source + target once each; flops = 2*K*K per y. Read beyond it: the halo rows at which
// strips meet, up to 30 bytes of neighbours' a run, weights once a block; parts of rows: halo columns, and
// the 16 bytes at both ends of each row. Bound: at its copy bandwidth an H200 has 27 lane-instructions for a
// target in half precision, 55 in float. By the machine code of 3x3, stride 1, in half precision a source
// takes 9 on its way to shared memory, dilated 23 (where it shares its 16 bytes with the next row 16 and 29),
// a target 22 more up to the epilogue: memory bounds float 3x3, the issue of instructions the rest. Blocks
// are small, so that others load while one computes. Registers (ptxas, sm_90a, bfloat16): 79 at 3x3, 79 at
// 5x5, 117 at 7x7: six to four blocks of 128 threads. Why floats with padding: as they lie in memory, each
// read would take a conversion, and a predicate that tells the next row's elements from padding. Why no
// classes of columns in blocks of their own: each would read all of a row's sectors. A thread's columns and
// the pitch of a class are odd numbers: the lanes of a warp read from different banks, or two by two. A
// thread whose weights are not all finite leaves out the padding tap by tap.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/launch.h"
#include "conv2d/depthwise_tile_moves.cuh"

namespace fastcnn {

// What a window's columns or rows hold of the source.
struct DepthwiseInside {
  int low, high;
};

// Of the window that begins at source `first` of the span, and steps through it by `step`.
__device__ inline DepthwiseInside inside(const DepthwiseSpan& span, const FastDiv& step, int first) {
  return {step.divide(max(span.low - first, 0) + step.divisor() - 1),
          step.divide(max(span.high - first, 0) + step.divisor() - 1)};
}

// A target whose weights are not all finite: padding is left out, tap by tap.
template <int K, DepthwiseStep kStep>
[[gnu::noinline]] __device__ float careful_sum(const DepthwiseTileShared<K>& shared, int corner, int pitch,
                                               int weight, int i, int u, DepthwiseInside rows,
                                               DepthwiseInside columns, float sum) {
  constexpr DepthwiseThreadShape kShape = depthwise_tile_shape(K, kStep);
#pragma unroll 1
  for (int j = max(rows.low, 0); j < min(rows.high, kShape.sources(kShape.rows)); ++j) {
    const int r = kShape.tap(i, j);
    if (r < 0 || r >= K) continue;
#pragma unroll 1
    for (int c = columns.low; c < min(columns.high, kShape.sources(kShape.columns)); ++c) {
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
  if (place.rows.count <= 0) return;
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

  int group, row_group, column_class = 0, row_class = 0;
  int rest = params.groups.divide(static_cast<int>(threadIdx.x), group);
  if (params.dilated) {
    rest = image.columns.by_classes.divide(rest, column_class);
    rest = params.row_classes.divide(rest, row_class);
  }
  const int plane = params.row_groups.divide(rest, row_group);
  // The thread's first target, counted in the block.
  const int row_step = params.row_classes.divisor(), column_step = image.columns.classes;
  const int row = row_group * kRows * row_step + row_class;
  const int column = group * kColumns * column_step + column_class;
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
    // Its window: the first source in the block's, where that lies, and which rows there are.
    int first_row = kShape.advance(row_group * kRows), first_column = kShape.advance(group * kColumns);
    int at_column = first_column, pitch = params.pitch;
    DepthwiseInside rows{place.rows.low - first_row, place.rows.high - first_row};
    if (params.dilated) {
      const FastDiv& dilation = params.row_dilation;
      int row_rest, column_rest;
      first_row = image.rows.offset(row_class, row_rest) + dilation.divisor() * first_row;
      first_column =
          image.columns.offset(column_class, column_rest) + image.columns.dilation.divisor() * first_column;
      at_column = depthwise_tile_slot(params, first_column);
      pitch *= dilation.divisor();
      rows = inside(place.rows, dilation, first_row);
      // A class that no tap meets.
      if (column_rest != 0 || (row_rest != 0 && !params.by_rows)) rows.high = rows.low;
    }
    const int corner = (plane * place.plane_rows + first_row - place.first_row) * params.pitch + at_column;
    if (zero == 0) {
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) sum[i / kColumns][i % kColumns] = bias;
#pragma unroll
      for (int j = 0; j < kShape.sources(kRows); ++j) {
        if (j < rows.low || j >= rows.high) continue;
        const int at = corner + j * pitch;
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
      const DepthwiseInside columns = inside(place.columns, image.columns.dilation, first_column);
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) {
        sum[i / kColumns][i % kColumns] = careful_sum<K, kStep>(
            shared, corner, pitch, weight_at, i / kColumns, i % kColumns, rows, columns, bias);
      }
    }
  }
  __syncthreads();

  // Targets that exist: a transposed block's first row and column may not.
  const int skipped_rows = max(-place.rows.target, 0), skipped_columns = max(-place.columns.target, 0);
  const int target_rows = place.rows.count - skipped_rows;
  const int width = place.columns.count - skipped_columns;
  const int64_t begin =
      (static_cast<int64_t>(place.plane) * image.rows.target + place.rows.target + skipped_rows) *
          image.columns.target +
      place.columns.target + skipped_columns;
  if (active) {
    const int shift = params.by_rows ? 0 : static_cast<int>(begin % (16 / static_cast<int>(sizeof(T))));
    const int start = shift + (plane * target_rows + row - skipped_rows) * width + column - skipped_columns;
    const auto store = [&](auto step) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int below = i * row_step;
        if (row + below < skipped_rows || row + below >= place.rows.count) continue;
#pragma unroll
        for (int u = 0; u < kColumns; ++u) {
          const int beside = u * step;
          if (column + beside >= skipped_columns && column + beside < place.columns.count) {
            shared.tile.store(start + below * width + beside, sum[i][u]);
          }
        }
      }
    };
    if (column_step == 1) {
      store(std::integral_constant<int, 1>{});
    } else {
      store(column_step);
    }
  }
  __syncthreads();
  write_tile<T, K>(shared, params, begin, params.by_rows ? width : place.planes * target_rows * width,
                   target_rows);
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
