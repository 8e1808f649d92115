// Depthwise fprop: y[n,k,p,q] = sum over r,s of x[n, k/m, p*stride - pad + r*dilation, ...] * w[k,r,s].
//
// Walk: a thread makes kDepthwiseRows neighbouring output rows at one column, for a vector of V channels.
// Lanes run along channels (NHWC) or along columns (NCHW), so every access of a warp is contiguous. A block
// covers a tile of channels x pixels and keeps its channels' weights in shared memory, read once per tap for
// all rows. Floor: bytes = x + y once each; flops = 2*R*S per output. At 3x3 in half precision that is 4.5
// flops per byte: memory bounds it. Neighbouring windows overlap, and R*S reads of x per output go through
// L1: from 5x5 on the L1 cache and the FMA pipes bound it, not memory. Why: no tensor-core shape fits one
// input channel per output channel; an implicit GEMM would use one column. Taps that fall into the padding
// are skipped, not multiplied by zero: an infinite weight stays harmless there.
#pragma once

#include "conv2d/depthwise.h"
#include "conv2d/depthwise_weights.cuh"
#include "conv2d/epilogue.cuh"

namespace fastcnn {

struct DepthwiseFpropParams {
  Conv2dParams conv;
  ThreadTile tile;
  DepthwiseWeights weights;
  int weight_taps = 0;
  FastDiv channel_tiles;
  FastDiv columns;     // Q
  FastDiv row_groups;  // groups of kDepthwiseRows rows that cover P
  FastDiv multiplier;  // K / C
};

template <class T, int V>
__global__ void depthwise_fprop(const __grid_constant__ DepthwiseFpropParams params) {
  using Acc = accumulator_t<T>;
  const Conv2dProblem& problem = params.conv.problem;
  const TensorView& x = params.conv.input;
  auto& shared = shared_memory<DepthwiseWeightShared<T>>();

  int channel_tile;
  const int pixel_tile = params.channel_tiles.divide(blockIdx.x, channel_tile);
  const int tile_channels = params.tile.channel_threads * V;
  const int tile_channel = params.tile.channel_of(threadIdx.x) * V;
  const int k = channel_tile * tile_channels + tile_channel;

  int q, row_group;
  const int n = params.row_groups.divide(
      params.columns.divide(pixel_tile * params.tile.pixel_threads + params.tile.pixel_of(threadIdx.x), q),
      row_group);
  const int p = row_group * kDepthwiseRows;
  const bool active = n < problem.n && k < problem.k;
  const int rows = active ? min(kDepthwiseRows, problem.p - p) : 0;

  const int h = p * problem.stride_h - problem.pad_top;
  const int w = q * problem.stride_w - problem.pad_left;
  const T* window = static_cast<const T*>(x.data) + n * x.stride_n +
                    params.multiplier.divide(k) * x.stride_c + h * x.stride_h + w * x.stride_w;

  Acc sum[kDepthwiseRows][V] = {};
  int r = 0;
  int s = 0;
  const int taps = problem.r * problem.s;
  for (int first_tap = 0; first_tap < taps; first_tap += params.weight_taps) {
    const int chunk = min(params.weight_taps, taps - first_tap);
    if (first_tap > 0) __syncthreads();
    load_depthwise_weights(shared, params.weights, channel_tile * tile_channels, tile_channels, first_tap,
                           chunk);
    __syncthreads();
    if (!active) continue;
    for (int tap = 0; tap < chunk; ++tap) {
      const bool column_inside = within(w + s * problem.dilation_w, problem.w);
      const T* source = window + r * problem.dilation_h * x.stride_h + s * problem.dilation_w * x.stride_w;
      Vector<T, V> value[kDepthwiseRows];
      bool inside[kDepthwiseRows];
#pragma unroll
      for (int i = 0; i < kDepthwiseRows; ++i) {
        const int row = h + i * problem.stride_h + r * problem.dilation_h;
        inside[i] = column_inside && i < rows && within(row, problem.h);
        value[i] = load_global_if<V>(inside[i], source + i * problem.stride_h * x.stride_h);
      }
      const Vector<T, V> weight = shared.weights.template load_vector<V>(tap * tile_channels + tile_channel);
#pragma unroll
      for (int i = 0; i < kDepthwiseRows; ++i) {
        if (inside[i]) {
#pragma unroll
          for (int v = 0; v < V; ++v) sum[i][v] += to_accumulator(value[i][v]) * to_accumulator(weight[v]);
        }
      }
      if (++s == problem.s) {
        s = 0;
        ++r;
      }
    }
  }

  const TensorView& y = params.conv.output;
  const Epilogue& epilogue = params.conv.epilogue;
  const int64_t offset = n * y.stride_n + k * y.stride_c + p * y.stride_h + q * y.stride_w;
  if (!active) return;
  Acc bias[V];
#pragma unroll
  for (int v = 0; v < V; ++v) bias[v] = load_bias<T>(epilogue, k + v);
#pragma unroll
  for (int i = 0; i < kDepthwiseRows; ++i) {
    if (i < rows) {
      const int64_t at = offset + i * y.stride_h;
      store_global<V>(static_cast<T*>(y.data) + at, finish<T>(epilogue, sum[i], bias, at));
    }
  }
}

}  // namespace fastcnn
