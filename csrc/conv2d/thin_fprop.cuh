// fprop of few input channels in float32 on FMA units.
//
// Walk: a block holds the weights of its filters, [tap][filter], and walks tiles of up to 512 output pixels.
// Of each it brings the box of x to shared memory. A warp takes 128 pixels and 16 filters at a time, a lane 4
// pixels that are 32 apart: it reads 4 elements of x and 4 vectors of weights, the same for all lanes, for 64
// products. Neighbouring lanes store neighbouring pixels, NHWC 16 bytes of filters each.
// Floor: bytes of x and y once, 2*N*P*Q*K*C*R*S flops. At 3x3, C = 3 both take about as long; FMA units bound
// 7x7 (147 taps) by far, memory one channel's 3x3. Waste: filters are padded to 16; x is read 1 + halo times.
// Registers (ptxas; sm_80, sm_90a): 115, 128: two blocks an SM.
// Why: the generic kernel brings every tap of every pixel from memory, element by element.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/thin_fprop_tile.cuh"

namespace fastcnn::thin {

inline constexpr int kRunFilters = kThinRunFilters;
inline constexpr int kLanePixels = kThinRunPixels / 32;

template <class T>
struct FpropShared {
  SharedArray<T, kArena<T>> arena;  // weights, the box
  SharedArray<int, kThinMaxReduction> taps;
  SharedArray<int, kThinSlots> seen;
  SharedArray<float, kThinFilters> bias;
};

template <class T>
__global__ __launch_bounds__(kThinThreads,
                             2) void fprop_kernel(const __grid_constant__ ThinFpropParams params) {
  auto& shared = shared_memory<FpropShared<T>>();
  int slab;
  const int block_chunk = params.slabs.divide(static_cast<int>(blockIdx.x), slab);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_filter = slab * params.slab_filters;
  const int filters = min(params.slab_filters, params.filters - first_filter);
  const int box_start = params.slab_filters * params.steps;

  for (int at = threadIdx.x * kVector<T>; at < box_start; at += blockDim.x * kVector<T>) {
    shared.arena.template store_vector<kVector<T>>(at, Vector<T, kVector<T>>{});
  }
  for (int at = threadIdx.x; at < params.steps; at += blockDim.x) {
    shared.taps.store(at, tap_element(params.x, params.taps, at).offset);
  }
  write_seen(shared.seen, params, params.pixel_blocks * kThinRunPixels);
  for (int at = threadIdx.x; at < params.slab_filters; at += blockDim.x) {
    shared.bias.store(at, at < filters ? load_bias<T>(params.epilogue, first_filter + at) : 0.0f);
  }
  __syncthreads();
  bring_weights(shared.arena, params, first_filter, filters,
                [&](int filter, int k) { return k * params.slab_filters + filter; });

  const int items = params.filter_blocks * params.pixel_blocks;
  const int first_tile = block_chunk * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const TilePosition at = tile_at(params, tile);
    __syncthreads();
    const int start = bring_tile_box(shared.arena, box_start, params, at);
    __syncthreads();
    for (int item = warp; item < items; item += kThinThreads / 32) {
      int filter_block;
      const int first_slot = params.block_filters.divide(item, filter_block) * kThinRunPixels + lane;
      const int block_filter = filter_block * kRunFilters;
      int seen[kLanePixels];
#pragma unroll
      for (int i = 0; i < kLanePixels; ++i) seen[i] = start + shared.seen.load(first_slot + i * 32);

      float sums[kLanePixels][kRunFilters] = {};
#pragma unroll 2
      for (int k = 0; k < params.steps; ++k) {
        const int tap = shared.taps.load(k);
        float x[kLanePixels];
#pragma unroll
        for (int i = 0; i < kLanePixels; ++i) x[i] = to_accumulator(shared.arena.load(seen[i] + tap));
#pragma unroll
        for (int f = 0; f < kRunFilters; f += 4) {
          const auto w = shared.arena.template load_vector<4>(k * params.slab_filters + block_filter + f);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
#pragma unroll
            for (int i = 0; i < kLanePixels; ++i) sums[i][f + v] += x[i] * to_accumulator(w[v]);
          }
        }
      }

#pragma unroll
      for (int i = 0; i < kLanePixels; ++i) {
        int w;
        const int h = params.tile_columns.divide(first_slot + i * 32, w);
        if (h >= params.tile_h || at.row + h >= params.out_h || at.column + w >= params.out_w) continue;
        const int64_t pixel = at.image * params.output.stride_n + (at.row + h) * params.output.stride_h +
                              (at.column + w) * params.output.stride_w;
#pragma unroll
        for (int f = 0; f < kRunFilters; f += 4) {
          const int filter = block_filter + f;
          Vector<float, 4> sum;
#pragma unroll
          for (int v = 0; v < 4; ++v) sum[v] = sums[i][f + v];
          if (filter >= filters) continue;
          store_row<T, 4>(params, sum, shared.bias.template load_vector<4>(filter),
                          pixel + (first_filter + filter) * params.output.stride_c, params.output.stride_c,
                          filters - filter);
        }
      }
    }
  }
}

template <class T>
void launch_fprop(const ThinFpropParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(FpropShared<T>);
  config.stream = stream;
  launch("conv2d::thin_fprop", fprop_kernel<T>, config, params);
}

}  // namespace fastcnn::thin
