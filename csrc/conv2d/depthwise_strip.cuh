// Depthwise fprop and dgrad in strips, NHWC: K x K taps, K = 3, 5, 7 (depthwise_image.h has the problem).
//
// Walk: a block takes some channels of one image and a range of its columns, and walks down its rows. The
// source rows stream through a ring in shared memory, 16 bytes a copy: while one step is computed, the rows
// of the next are under way, with one barrier a step. A thread owns two channels, whose K * K weights stay in
// registers, and makes rows x columns targets a step: it reads each source pixel of its window once and uses
// it for every tap of every target that sees it. Dilation splits an image into classes of rows and columns,
// each a problem without it; they are different blocks. dgrad at stride 1 is fprop with its taps reversed, at
// stride 2 a step of its own, whose even and odd targets meet different taps at compile time.
//
// Floor: bytes = source + target once each; flops = 2*K*K per y. Read beyond it: the halo rows at which
// strips meet and the halo columns of images wider than a block, weights once a block. Bound: at its copy
// bandwidth an H200 has 27 lane-instructions for an output in half precision, 55 in float. By the machine
// code, stride 1, an output takes about 22 at 3x3 (9 products; reads, conversions, addresses, stores,
// copies), 38 at 5x5, 73 at 7x7: memory bounds 3x3 and float 5x5, the issue of instructions the rest.
// Registers (ptxas, the most of both architectures and all types): 3x3 80, three blocks of 256 threads an SM,
// transposed 128, two; 5x5 164, three of 128; 7x7 182, two of 128 (three would spill on sm_80).
// Why two channels a thread: 98 weights of 7x7 and the sums fit the registers of a thread, and a warp
// reads 128 bytes of shared memory without conflicts. Targets are written 4 (float: 8) bytes a thread, whole
// sectors a warp. Padding is zeros in shared memory, and rows of it are skipped; where a weight is not finite
// a thread goes tap by tap instead and leaves out those in the padding.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_axis.cuh"
#include "conv2d/depthwise_shape.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"
#include "ptx/cp_async.cuh"

namespace fastcnn {

template <class T, int K>
struct DepthwiseStripShared {
  SharedArray<T, K * K * kDepthwisePixelBytes / static_cast<int>(sizeof(T))> weights;  // [tap][channel]
  // [slot][pixel][channel]
  SharedArray<T, depthwise_strip_bytes(K) / static_cast<int>(sizeof(T))> rows;
};

static_assert(sizeof(DepthwiseStripShared<float, 5>) == depthwise_strip_shared_bytes(5));

template <class T>
__device__ inline void unpack_pair(const Vector<T, 2>& pair, float (&value)[2]) {
  value[0] = to_accumulator(pair[0]);
  value[1] = to_accumulator(pair[1]);
}

// bfloat16 is the upper half of float: one instruction each.
template <>
__device__ inline void unpack_pair(const Vector<__nv_bfloat16, 2>& pair, float (&value)[2]) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  const uint32_t low = bits << 16, high = bits & 0xffff0000u;
  memcpy(&value[0], &low, sizeof(low));
  memcpy(&value[1], &high, sizeof(high));
}

template <class T, int V>
__device__ inline Vector<T, V> rounded(const float (&sum)[V]) {
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result[v] = from_accumulator<T>(sum[v]);
  return result;
}

// Starts the copies of source rows [begin, end) of the block, those of them that exist.
template <class T, int K, DepthwiseStep kStep>
__device__ inline void fetch_strip_rows(DepthwiseStripShared<T, K>& shared,
                                        const DepthwiseStripParams& params, const DepthwiseSpan& rows,
                                        const DepthwiseSpan& columns, int64_t source, int channels, int begin,
                                        int end) {
  constexpr DepthwiseThreadShape kShape = depthwise_strip_shape(K, kStep);
  constexpr int kVector = 16 / sizeof(T);
  const TensorView& view = params.image.source;
  const T* const data = static_cast<const T*>(view.data);
  begin = max(begin, rows.low);
  end = min(end, rows.high);
  const int64_t row_step = view.stride_h * params.image.rows.dilation.divisor();
  const int64_t column_step = view.stride_w * params.image.columns.dilation.divisor();
  int first_slot;
  params.ring_rows.divide(begin, first_slot);
  const int items = params.tile_columns * params.vectors.divisor();
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    int vector;
    const int column = params.vectors.divide(item, vector);
    const bool inside = column >= columns.low && column < columns.high && vector * kVector < channels;
    int64_t offset = inside ? source + begin * row_step + column * column_step + vector * kVector : 0;
    const int to = depthwise_strip_pixel(kShape, column) * params.block_channels + vector * kVector;
    const int row_elements = depthwise_strip_pixel(kShape, params.tile_columns) * params.block_channels;
    int slot = first_slot;
    for (int row = begin; row < end; ++row, offset += row_step) {
      if (params.image.grad_activation.saved == nullptr) {
        ptx::cp_async<16>(shared.rows.address(slot * row_elements + to), data + offset, inside);
      } else {
        shared.rows.template store_vector<kVector>(
            slot * row_elements + to,
            load_grad_if<kVector>(inside, params.image.grad_activation, data, offset));
      }
      if (++slot == params.ring_rows.divisor()) slot = 0;
    }
  }
}

template <class T, int K, DepthwiseStep kStep>
__global__ void __launch_bounds__(depthwise_strip_threads(K),
                                  depthwise_strip_blocks_per_sm(depthwise_strip_shape(K, kStep)))
    depthwise_strip(const __grid_constant__ DepthwiseStripParams params) {
  constexpr DepthwiseThreadShape kShape = depthwise_strip_shape(K, kStep);
  constexpr int V = kDepthwiseStripVector;
  constexpr int kRows = kShape.rows;
  constexpr int kColumns = kShape.columns;
  constexpr bool kTransposed = kShape.transposed();  // only dgrad is
  auto& shared = shared_memory<DepthwiseStripShared<T, K>>();
  const DepthwiseImageParams& image = params.image;

  int chunk;
  int rest = params.chunks.divide(static_cast<int>(blockIdx.x), chunk);
  DepthwiseSpan columns(image.columns, kShape.advance(image.columns.block), rest);
  DepthwiseSpan rows(image.rows, kShape.advance(image.rows.block), rest);
  const int n = rest;
  if (rows.count <= 0 || columns.count <= 0) return;
  columns.clip(kShape);
  rows.clip(kShape);
  if (columns.low >= columns.high) rows.high = rows.low;  // nothing to read: zeros
  const int first_channel = chunk * params.block_channels;
  const int channels = min(params.block_channels, image.channels - first_channel);

  // The block's source pixel 0, 0, which may lie in the padding.
  const int64_t source = n * image.source.stride_n + first_channel + rows.origin * image.source.stride_h +
                         columns.origin * image.source.stride_w;
  const int step_rows = kShape.advance(kRows) * params.teams;
  const int halo = kShape.sources(kRows) - kShape.advance(kRows);
  fetch_strip_rows<T, K, kStep>(shared, params, rows, columns, source, channels, 0, step_rows + halo);
  ptx::cp_async_commit();

  for (int i = static_cast<int>(threadIdx.x); i < channels * K * K; i += static_cast<int>(blockDim.x)) {
    const int channel = i / (K * K), tap = i % (K * K);
    const int64_t from = (first_channel + channel) * image.weight.stride_n + tap / K * image.weight.stride_h +
                         tap % K * image.weight.stride_w;
    shared.weights.store((image.flip ? K * K - 1 - tap : tap) * params.block_channels + channel,
                         load_global(static_cast<const T*>(image.weight.data) + from));
  }
  __syncthreads();

  int lane, group;
  const int team = params.groups.divide(params.lanes.divide(static_cast<int>(threadIdx.x), lane), group);
  const int channel = lane * V;
  const bool active = team < params.teams && group * kColumns < columns.count && channel < channels;
  float weight[K * K][V];
  float bias[V] = {};
  float zero = 0;  // NaN where a weight is not finite
  if (active) {
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap) {
      const Vector<T, V> loaded =
          shared.weights.template load_vector<V>(tap * params.block_channels + channel);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        weight[tap][v] = to_accumulator(loaded[v]);
        zero += weight[tap][v] * 0.0f;
      }
    }
    if constexpr (!kTransposed) {
#pragma unroll
      for (int v = 0; v < V; ++v) bias[v] = load_bias<T>(image.epilogue, first_channel + channel + v);
    }
  }
  const int pixel = params.block_channels;
  const int row_elements = depthwise_strip_pixel(kShape, params.tile_columns) * pixel;
  const int corner = group * depthwise_strip_pitch(kShape) * pixel + channel;
  const int first_column = group * kColumns;

  // The thread's targets: those of a row are column_step elements apart, and these columns of it exist.
  const int column_step = image.columns.classes * static_cast<int>(image.target.stride_w);
  const int first_u = kTransposed && columns.target + first_column < 0 ? 1 : 0;
  const int last_u = columns.count - first_column;
  const int64_t target = n * image.target.stride_n + first_channel + channel +
                         rows.target * image.target.stride_h + columns.target * image.target.stride_w +
                         static_cast<int64_t>(first_column) * column_step;
  const auto row_exists = [&](int row) {
    return row < rows.count && (!kTransposed || rows.target + row >= 0);
  };
  const auto row_offset = [&](int row) { return target + row * image.rows.classes * image.target.stride_h; };
  T* const output = static_cast<T*>(image.target.data);
  const float none[V] = {};  // more of a bias: sums begin with it
  // Without residual, preactivation and activation, targets take a short way.
  const bool plain =
      kTransposed || (image.epilogue.residual == nullptr && image.epilogue.preactivation == nullptr &&
                      image.epilogue.activation == Activation::kNone);

  const int ring_rows = params.ring_rows.divisor();
  int source_row = 0;
  for (int row = 0; row < rows.count; row += kRows * params.teams, source_row += step_rows) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (row + kRows * params.teams < rows.count) {
      const int fetched = source_row + step_rows + halo;
      fetch_strip_rows<T, K, kStep>(shared, params, rows, columns, source, channels, fetched,
                                    fetched + step_rows);
    }
    ptx::cp_async_commit();
    if (!active) continue;

    const int my_row = row + team * kRows;
    const int my_source = source_row + team * kShape.advance(kRows);
    int first_slot;
    params.ring_rows.divide(my_source, first_slot);
    // Where row j of the thread's window begins in shared memory.
    const auto row_start = [&](int j) {
      const int slot = first_slot + j;
      return (slot >= ring_rows ? slot - ring_rows : slot) * row_elements + corner;
    };
    if (!(zero == 0)) {
#pragma unroll 1
      for (int target = 0; target < kRows * kColumns; ++target) {
        const int i = target / kColumns, u = target % kColumns;
        float sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = bias[v];
#pragma unroll 1
        for (int j = 0; j < kShape.sources(kRows); ++j) {
          const int r = kShape.tap(i, j);
          if (r < 0 || r >= K || my_source + j < rows.low || my_source + j >= rows.high) continue;
          const int at = row_start(j);
#pragma unroll 1
          for (int c = 0; c < kShape.sources(kColumns); ++c) {
            const int s = kShape.tap(u, c);
            const int column = group * kShape.advance(kColumns) + c;
            if (s < 0 || s >= K || column < columns.low || column >= columns.high) continue;
            const Vector<T, V> x =
                shared.rows.template load_vector<V>(at + depthwise_strip_pixel(kShape, c) * pixel);
            const Vector<T, V> w =
                shared.weights.template load_vector<V>((r * K + s) * params.block_channels + channel);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += to_accumulator(x[v]) * to_accumulator(w[v]);
          }
        }
        if (row_exists(my_row + i) && u >= first_u && u < last_u) {
          const int64_t offset = row_offset(my_row + i) + static_cast<int64_t>(u) * column_step;
          store_global<V>(output + offset, finish<T>(image.epilogue, sum, none, offset));
        }
      }
      continue;
    }

    float sum[kRows][kColumns][V];
#pragma unroll
    for (int target = 0; target < kRows * kColumns; ++target) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[target / kColumns][target % kColumns][v] = bias[v];
    }
#pragma unroll
    for (int j = 0; j < kShape.sources(kRows); ++j) {
      if (my_source + j < rows.low || my_source + j >= rows.high) continue;
      const int at = row_start(j);
#pragma unroll
      for (int c = 0; c < kShape.sources(kColumns); ++c) {
        float x[V];
        unpack_pair(shared.rows.template load_vector<V>(at + depthwise_strip_pixel(kShape, c) * pixel), x);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int r = kShape.tap(i, j);
          if (r < 0 || r >= K) continue;
#pragma unroll
          for (int u = 0; u < kColumns; ++u) {
            const int s = kShape.tap(u, c);
            if (s < 0 || s >= K) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[i][u][v] += x[v] * weight[r * K + s][v];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!row_exists(my_row + i)) continue;
      const int64_t offset = row_offset(my_row + i);
      if (plain) {
        T* to = output + offset;
        if (first_u == 0 && last_u >= kColumns) {
#pragma unroll
          for (int u = 0; u < kColumns; ++u, to += column_step) store_global<V>(to, rounded<T>(sum[i][u]));
        } else {
#pragma unroll
          for (int u = 0; u < kColumns; ++u, to += column_step) {
            store_global_if<V>(u >= first_u && u < last_u, to, rounded<T>(sum[i][u]));
          }
        }
      } else if constexpr (!kTransposed) {
#pragma unroll
        for (int u = 0; u < kColumns; ++u) {
          if (u >= last_u) continue;
          const int64_t at = offset + u * column_step;
          store_global<V>(output + at, finish<T>(image.epilogue, sum[i][u], none, at));
        }
      }
    }
  }
}

template <class T, int K>
void launch_depthwise_strip_kernel(const DepthwiseStripParams& params, const DepthwiseImagePlan& plan,
                                   cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(DepthwiseStripShared<T, K>);
  config.stream = stream;
  const auto kernel = plan.step == DepthwiseStep::kOne   ? depthwise_strip<T, K, DepthwiseStep::kOne>
                      : plan.step == DepthwiseStep::kTwo ? depthwise_strip<T, K, DepthwiseStep::kTwo>
                                                         : depthwise_strip<T, K, DepthwiseStep::kTransposed>;
  launch(("conv2d::" + plan.kernel).c_str(), kernel, config, params);
}

template <class T>
void launch_depthwise_strip(const DepthwiseStripParams& params, const DepthwiseImagePlan& plan, int kernel,
                            cudaStream_t stream) {
  if (kernel == 3) return launch_depthwise_strip_kernel<T, 3>(params, plan, stream);
  if (kernel == 5) return launch_depthwise_strip_kernel<T, 5>(params, plan, stream);
  launch_depthwise_strip_kernel<T, 7>(params, plan, stream);
}

}  // namespace fastcnn
