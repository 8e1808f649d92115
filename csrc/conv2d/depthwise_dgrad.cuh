// Depthwise dgrad: dx[n,c,h,w] = sum over the channel's filters k and over r,s of dy[n,k,p,q] * w[k,r,s],
// where p*stride = h + pad - r*dilation and likewise q: a gather, so every dx is written once and nothing is
// added twice.
//
// Walk: as fprop, a thread makes kDepthwiseRows rows of dx at one column for V channels. Its rows lie
// stride_h apart: they share the taps that divide evenly, and their dy rows are neighbours, so one division
// per tap row serves them all. Weights of the block's channels (all their filters) come through shared
// memory. Floor: bytes = dy + dx once each; flops = 2*R*S per dy. Memory bounds 3x3; larger kernels are bound
// by L1. Why: lanes of one warp along W disagree about divisibility when stride_w > 1 (NCHW), which idles
// them in turn; along channels (NHWC) they always agree.
#pragma once

#include "conv2d/depthwise.h"
#include "conv2d/depthwise_weights.cuh"
#include "conv2d/grad_activation.cuh"

namespace fastcnn {

struct DepthwiseDgradParams {
  Conv2dParams conv;
  ThreadTile tile;
  DepthwiseWeights weights;
  int weight_taps = 0;
  FastDiv channel_tiles;
  FastDiv columns;     // W
  FastDiv row_groups;  // phases of stride_h that H has x groups of kDepthwiseRows rows that cover H
  FastDiv stride_h;
  FastDiv stride_w;
  int shift_p = 0;  // whole output rows added before a division, so that its dividend is never negative
  int shift_q = 0;
};

template <class T, int V>
__global__ void depthwise_dgrad(const __grid_constant__ DepthwiseDgradParams params) {
  using Acc = accumulator_t<T>;
  const Conv2dProblem& problem = params.conv.problem;
  const TensorView& dy = params.conv.grad;
  auto& shared = shared_memory<DepthwiseWeightShared<T>>();

  int channel_tile;
  const int pixel_tile = params.channel_tiles.divide(blockIdx.x, channel_tile);
  const int tile_channels = params.tile.channel_threads * V;
  const int tile_channel = params.tile.channel_of(threadIdx.x) * V;
  const int c = channel_tile * tile_channels + tile_channel;

  int w, row_group, phase;
  const int n = params.row_groups.divide(
      params.columns.divide(pixel_tile * params.tile.pixel_threads + params.tile.pixel_of(threadIdx.x), w),
      row_group);
  const int h = params.stride_h.divide(row_group, phase) * kDepthwiseRows * problem.stride_h + phase;
  const bool active = n < problem.n && c < problem.c;

  const int filters = params.weights.filters;
  const T* grad = static_cast<const T*>(dy.data);
  const int64_t image = n * dy.stride_n + static_cast<int64_t>(c) * filters * dy.stride_c;

  Acc sum[kDepthwiseRows][V] = {};
  int filter = 0;
  int r = 0;
  int s = 0;
  const int taps = filters * problem.r * problem.s;
  for (int first_tap = 0; first_tap < taps; first_tap += params.weight_taps) {
    const int chunk = min(params.weight_taps, taps - first_tap);
    if (first_tap > 0) __syncthreads();
    load_depthwise_weights(shared, params.weights, channel_tile * tile_channels, tile_channels, first_tap,
                           chunk);
    __syncthreads();
    if (!active) continue;
    for (int tap = 0; tap < chunk; ++tap) {
      int rest_h, rest_w;
      const int p =
          params.stride_h.divide(
              h + problem.pad_top - r * problem.dilation_h + params.shift_p * problem.stride_h, rest_h) -
          params.shift_p;
      const int q =
          params.stride_w.divide(
              w + problem.pad_left - s * problem.dilation_w + params.shift_q * problem.stride_w, rest_w) -
          params.shift_q;
      if (rest_h == 0 && rest_w == 0 && within(q, problem.q)) {
        const int64_t source = image + filter * dy.stride_c + p * dy.stride_h + q * dy.stride_w;
        Vector<T, V> value[kDepthwiseRows];
        bool inside[kDepthwiseRows];
#pragma unroll
        for (int i = 0; i < kDepthwiseRows; ++i) {
          inside[i] = within(p + i, problem.p);
          value[i] = load_grad_if<V>(inside[i], params.conv.grad_activation, grad, source + i * dy.stride_h);
        }
        const Vector<T, V> weight =
            shared.weights.template load_vector<V>(tap * tile_channels + tile_channel);
#pragma unroll
        for (int i = 0; i < kDepthwiseRows; ++i) {
          if (inside[i]) {
#pragma unroll
            for (int v = 0; v < V; ++v) sum[i][v] += to_accumulator(value[i][v]) * to_accumulator(weight[v]);
          }
        }
      }
      if (++s == problem.s) {
        s = 0;
        if (++r == problem.r) {
          r = 0;
          ++filter;
        }
      }
    }
  }

  if (!active) return;
  const TensorView& dx = params.conv.output;
  T* target = static_cast<T*>(dx.data) + n * dx.stride_n + c * dx.stride_c + w * dx.stride_w;
#pragma unroll
  for (int i = 0; i < kDepthwiseRows; ++i) {
    const int row = h + i * problem.stride_h;
    if (row < problem.h) {
      Vector<T, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result[v] = from_accumulator<T>(sum[i][v]);
      store_global<V>(target + row * dx.stride_h, result);
    }
  }
}

}  // namespace fastcnn
