// Bias gradient: db[k] = sum over n,p,q of dy[n,k,p,q].
//
// Walk: a block takes a tile of channels and a range of pixels (a split); lanes run along channels (NHWC) or
// pixels (NCHW), 16 bytes each where strides allow. A thread adds its pixels in runs of kBiasGradRun, and the
// runs to its total, so that a rounding error grows with the length of a run and their count, not with their
// product. The pixel threads are summed pairwise through shared memory; launch_split_sum adds the splits in
// fixed order. Floor: bytes = dy once; one addition per element: memory bounds it. Why: two stages without
// atomics give the same bits in every run, and fill the chip at any channel count.
#pragma once

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/bias_grad.h"

namespace fastcnn {

inline constexpr int kBiasGradThreads = 256;
inline constexpr int kBiasGradRun = 16;

struct BiasGradKernelParams {
  BiasGradParams bias_grad;  // n, p, q: images of this launch, rows, columns of pixel vectors
  ThreadTile tile;
  int first_split = 0;
  int split_pixels = 0;
  FastDiv channel_tiles;
  FastDiv rows;
  FastDiv columns;
};

template <class Acc, int CV>
struct BiasGradShared {
  SharedArray<Acc, kBiasGradThreads / 2 * CV> sums;
};

template <class T, int CV, int PV>
__global__ void bias_grad(const __grid_constant__ BiasGradKernelParams params) {
  static_assert(CV == 1 || PV == 1, "a vector runs along channels or along pixels");
  using Acc = accumulator_t<T>;
  const BiasGradParams& problem = params.bias_grad;
  const TensorView& dy = problem.grad;

  int channel_tile;
  const int split = params.channel_tiles.divide(blockIdx.x, channel_tile);
  const int tile_channel = params.tile.channel_of(threadIdx.x);
  const int tile_pixel = params.tile.pixel_of(threadIdx.x);
  const int k = (channel_tile * params.tile.channel_threads + tile_channel) * CV;
  const bool active = k < problem.k;

  Acc total[CV] = {};
  if (active) {
    const T* source = static_cast<const T*>(dy.data) + k * dy.stride_c;
    const int step = params.tile.pixel_threads;
    const int end = min((split + 1) * static_cast<int64_t>(params.split_pixels),
                        static_cast<int64_t>(problem.n) * problem.p * problem.q);
    for (int pixel = split * params.split_pixels + tile_pixel; pixel < end; pixel += kBiasGradRun * step) {
      Acc run[CV] = {};
#pragma unroll 4
      for (int i = 0; i < kBiasGradRun; ++i) {
        const int at = pixel + i * step;
        int p, q;
        const int n = params.rows.divide(params.columns.divide(at, q), p);
        const auto values =
            load_global_if<CV * PV>(at < end, source + n * dy.stride_n + p * dy.stride_h + q * dy.stride_w);
        if constexpr (PV > 1) {
          Acc sum[PV];
#pragma unroll
          for (int v = 0; v < PV; ++v) sum[v] = to_accumulator(values[v]);
#pragma unroll
          for (int half = PV / 2; half > 0; half /= 2) {
#pragma unroll
            for (int v = 0; v < half; ++v) sum[v] += sum[v + half];
          }
          run[0] += sum[0];
        } else {
#pragma unroll
          for (int v = 0; v < CV; ++v) run[v] += to_accumulator(values[v]);
        }
      }
#pragma unroll
      for (int v = 0; v < CV; ++v) total[v] += run[v];
    }
  }

  auto& shared = shared_memory<BiasGradShared<Acc, CV>>();
  for (int half = params.tile.pixel_threads / 2; half > 0; half /= 2) {
    const int slots = half * params.tile.channel_threads;
    const int pixel = tile_pixel & (half - 1);
    const int slot = params.tile.channels_fast ? pixel * params.tile.channel_threads + tile_channel
                                               : tile_channel * half + pixel;
    if (tile_pixel >= half && tile_pixel < 2 * half) {
#pragma unroll
      for (int v = 0; v < CV; ++v) shared.sums.store(v * slots + slot, total[v]);
    }
    __syncthreads();
    if (tile_pixel < half) {
#pragma unroll
      for (int v = 0; v < CV; ++v) total[v] += shared.sums.load(v * slots + slot);
    }
    __syncthreads();
  }

  if (tile_pixel == 0 && active) {
    Acc* partial = static_cast<Acc*>(problem.workspace) +
                   (params.first_split + split) * static_cast<int64_t>(problem.k) + k;
#pragma unroll
    for (int v = 0; v < CV; ++v) store_global(partial + v, total[v]);
  }
}

}  // namespace fastcnn
