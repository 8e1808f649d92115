// Depthwise wgrad of any shape: dw[k,r,s] = sum over n,p,q of x[n, k/m, p*stride - pad + r*dilation, ...] *
// dy[n,k,p,q].
//
// Walk: a block takes a tile of V-channel vectors, a 3x3 window of taps and a range of pixels. Each thread
// walks its share of the pixels with the window's 9*V sums in registers: dy is read once, x nine times
// through L1. The pixel threads are then summed pairwise through shared memory, and the block writes its
// partial sums to the workspace [split][k][r][s], those of the bias gradient behind them; launch_split_sum
// adds the splits in fixed order and rounds once. Floor: bytes = x + dy once each; flops = 2*R*S per dy. A
// 3x3 kernel is one window: one pass over memory. Larger kernels read x and dy once per window, neighbouring
// blocks at the same time, so mostly from L2. Why: no atomics, hence the same bits in every run; splits give
// the chip enough blocks at any channel count.
#pragma once

#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise.h"
#include "conv2d/grad_activation.cuh"

namespace fastcnn {

inline constexpr int kDepthwiseWindowTaps = kDepthwiseTapWindow * kDepthwiseTapWindow;
inline constexpr int kDepthwiseWindowSums = kDepthwiseWindowTaps + 1;

struct DepthwiseWgradParams {
  Conv2dParams conv;
  ThreadTile tile;
  int first_split = 0;  // of this launch, in the workspace
  int split_pixels = 0;
  FastDiv channel_tiles;
  FastDiv windows;         // windows that cover R x S
  FastDiv window_columns;  // windows that cover S
  FastDiv columns;         // Q
  FastDiv rows;            // P
  FastDiv multiplier;      // K / C
};

template <class Acc, int V>
struct DepthwiseWgradShared {
  SharedArray<Acc, kDepthwiseThreads / 2 * kDepthwiseWindowSums * V> sums;
};

template <class T, int V>
__global__ void depthwise_wgrad(const __grid_constant__ DepthwiseWgradParams params) {
  using Acc = accumulator_t<T>;
  constexpr int kWindow = kDepthwiseTapWindow;
  const Conv2dProblem& problem = params.conv.problem;
  const TensorView& x = params.conv.input;
  const TensorView& dy = params.conv.grad;

  int channel_tile, window;
  const int split = params.windows.divide(params.channel_tiles.divide(blockIdx.x, channel_tile), window);
  int window_column;
  const int first_r = params.window_columns.divide(window, window_column) * kWindow;
  const int first_s = window_column * kWindow;

  const int tile_channel = params.tile.channel_of(threadIdx.x);
  const int tile_pixel = params.tile.pixel_of(threadIdx.x);
  const int k = (channel_tile * params.tile.channel_threads + tile_channel) * V;
  const bool active = k < problem.k;

  Acc sum[kDepthwiseWindowSums][V] = {};  // the taps', then the bias gradient's
  if (active) {
    const int begin = split * params.split_pixels;
    const int end = min(begin + params.split_pixels, problem.n * problem.p * problem.q);
    const T* grad = static_cast<const T*>(dy.data);
    const T* image = static_cast<const T*>(x.data) + params.multiplier.divide(k) * x.stride_c;
    for (int pixel = begin + tile_pixel; pixel < end; pixel += params.tile.pixel_threads) {
      int p, q;
      const int n = params.rows.divide(params.columns.divide(pixel, q), p);
      const Vector<T, V> gradient =
          load_grad_if<V>(true, params.conv.grad_activation, grad,
                          n * dy.stride_n + k * dy.stride_c + p * dy.stride_h + q * dy.stride_w);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[kDepthwiseWindowTaps][v] += to_accumulator(gradient[v]);
      const int h = p * problem.stride_h - problem.pad_top + first_r * problem.dilation_h;
      const int w = q * problem.stride_w - problem.pad_left + first_s * problem.dilation_w;
      const T* source = image + n * x.stride_n + h * x.stride_h + w * x.stride_w;
      Vector<T, V> value[kDepthwiseWindowTaps];
      bool inside[kDepthwiseWindowTaps];
#pragma unroll
      for (int i = 0; i < kWindow; ++i) {
        const bool row_inside = first_r + i < problem.r && within(h + i * problem.dilation_h, problem.h);
#pragma unroll
        for (int j = 0; j < kWindow; ++j) {
          const int tap = i * kWindow + j;
          inside[tap] =
              row_inside && first_s + j < problem.s && within(w + j * problem.dilation_w, problem.w);
          value[tap] = load_global_if<V>(inside[tap], source + i * problem.dilation_h * x.stride_h +
                                                          j * problem.dilation_w * x.stride_w);
        }
      }
#pragma unroll
      for (int tap = 0; tap < kDepthwiseWindowTaps; ++tap) {
        if (inside[tap]) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sum[tap][v] += to_accumulator(value[tap][v]) * to_accumulator(gradient[v]);
          }
        }
      }
    }
  }

  auto& shared = shared_memory<DepthwiseWgradShared<Acc, V>>();
  for (int half = params.tile.pixel_threads / 2; half > 0; half /= 2) {
    const int slots = half * params.tile.channel_threads;
    const int pixel = tile_pixel & (half - 1);
    const int slot = params.tile.channels_fast ? pixel * params.tile.channel_threads + tile_channel
                                               : tile_channel * half + pixel;
    if (tile_pixel >= half && tile_pixel < 2 * half) {
#pragma unroll
      for (int i = 0; i < kDepthwiseWindowSums; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) shared.sums.store((i * V + v) * slots + slot, sum[i][v]);
      }
    }
    __syncthreads();
    if (tile_pixel < half) {
#pragma unroll
      for (int i = 0; i < kDepthwiseWindowSums; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[i][v] += shared.sums.load((i * V + v) * slots + slot);
      }
    }
    __syncthreads();
  }

  if (tile_pixel == 0 && active) {
    const int64_t taps = problem.r * problem.s;
    const bool has_bias = params.conv.bias_grad != nullptr;
    Acc* const partials = static_cast<Acc*>(params.conv.workspace) +
                          (params.first_split + split) * problem.k * (taps + (has_bias ? 1 : 0));
    Acc* const partial = partials + k * taps;
#pragma unroll
    for (int tap = 0; tap < kDepthwiseWindowTaps; ++tap) {
      const int r = first_r + tap / kWindow;
      const int s = first_s + tap % kWindow;
      if (r < problem.r && s < problem.s) {
#pragma unroll
        for (int v = 0; v < V; ++v) store_global(partial + v * taps + r * problem.s + s, sum[tap][v]);
      }
    }
    if (has_bias && window == 0) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        store_global(partials + problem.k * taps + k + v, sum[kDepthwiseWindowTaps][v]);
      }
    }
  }
}

}  // namespace fastcnn
