// wgrad of few input channels in float32 on FMA units, and the bias gradient with it.
//
// Walk: blocks, tiles and splits are those of thin_wgrad_mma.cuh. In shared memory a pixel's filters lie side
// by side, NCHW gradients are turned as they come. A warp owns a unit, 64 filters x 32 taps, and every
// `streams`-th pixel: a lane sums 8 filters x 8 taps (4, where the unit has 16 at most), from 2 vectors of
// the gradient and as many elements of x. Pixels that do not exist are skipped. Streams are added in order in
// the end, splits by split_sum.
// Floor: bytes of x and dy once, 2*N*P*Q*K*C*R*S flops. At 3x3, C = 3 both take about as long; FMA units
// bound 7x7. Waste: taps are padded to 32 (16), filters to 64; x is read 1 + halo times.
// Registers (ptxas, the most of sm_80 and sm_90a): 128: 16 warps an SM.
// Why: the generic kernel brings x once a tap, element by element.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common/launch.h"
#include "conv2d/thin_wgrad_exchanged.cuh"

namespace fastcnn::thin {

inline constexpr int kLaneFilters = 8;
inline constexpr int kLaneTaps = kThinUnitTaps / 4;
inline constexpr int kLaneSums = kLaneFilters * (kLaneTaps + 1);  // and the bias gradient's

// Over the arena, when the last tile is done: the sums of streams past the first.
struct StreamSums {
  SharedArray<float, (kThinThreads / 32 - 1) * 32 * kLaneSums> sums;
};
static_assert(sizeof(StreamSums) <= kThinArenaBytes);

template <class T, bool ChannelsLast>
__global__ __launch_bounds__(kThinWgradWarps *
                             32) void wgrad_kernel(const __grid_constant__ ThinWgradParams params) {
  auto& shared = shared_memory<WgradShared<T>>();
  int slab, unit_tile;
  const int split =
      params.unit_tiles.divide(params.slabs.divide(static_cast<int>(blockIdx.x), slab), unit_tile);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int stream = warp / params.block_units, block_unit = warp % params.block_units;
  const int unit = unit_tile * params.block_units + block_unit;
  const bool active = stream < params.streams && unit < params.units;
  int part;
  const int block_filter = params.unit_parts.divide(active ? unit : 0, part) * kThinMmaFilters;
  // A lane's filters are two runs of 4; its taps are 4 apart.
  const int first_filter = block_filter + lane % 8 * 4;
  const int first_tap = part * kThinUnitTaps + lane / 8;
  const bool sums_bias = params.bias_grad != nullptr && part == 0;

  // Where the block's taps lie. A lane takes its own anew each tile: they need no registers while the next
  // tile comes.
  for (int at = threadIdx.x; at < params.block_units * kThinUnitTaps; at += blockDim.x) {
    int at_part;
    params.unit_parts.divide(unit_tile * params.block_units + at / kThinUnitTaps, at_part);
    const int tap = at_part * kThinUnitTaps + at % kThinUnitTaps;
    shared.taps.store(at, tap < params.taps ? tap_offset(params, tap) : 0);
  }
  float sums[kLaneTaps][kLaneFilters] = {};
  float bias[kLaneFilters] = {};
  const int first_tile = split * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    __syncthreads();
    bring_wgrad_tile<T, ChannelsLast>(shared, params, slab, tile);
    __syncthreads();
    if (params.finishes_box) {
      finish_box(shared, params, tile);
      __syncthreads();
    }
    if (!active) continue;
    // A run-time choice, taken once a tile: few taps, or no bias gradient, are fewer instructions a pixel.
    const auto sum_pixels = [&](auto lane_taps, auto with_bias) {
      constexpr int kTaps = decltype(lane_taps)::value;
      int taps[kTaps];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        taps[j] = shared.taps.load(block_unit * kThinUnitTaps + lane / 8 + j * 4);
      }
#pragma unroll 1
      for (int slot = stream; slot < params.slots; slot += params.streams) {
        const int pixel = shared.pixels.load(slot);
        if (pixel < 0) continue;
        float dy[kLaneFilters];
#pragma unroll
        for (int i = 0; i < kLaneFilters; i += 4) {
          const auto run =
              shared.arena.template load_vector<4>(slot * params.dy_pitch + first_filter + i * 8);
#pragma unroll
          for (int v = 0; v < 4; ++v) dy[i + v] = to_accumulator(run[v]);
        }
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          const float x = to_accumulator(shared.arena.load(pixel + taps[j]));
#pragma unroll
          for (int i = 0; i < kLaneFilters; ++i) sums[j][i] += dy[i] * x;
        }
        if constexpr (decltype(with_bias)::value) {
#pragma unroll
          for (int i = 0; i < kLaneFilters; ++i) bias[i] += dy[i];
        }
      }
    };
    const bool few = params.taps - part * kThinUnitTaps <= kThinUnitTaps / 2;
    const std::integral_constant<int, kLaneTaps> all_taps;
    const std::integral_constant<int, kLaneTaps / 2> few_taps;
    if (sums_bias) {
      few ? sum_pixels(few_taps, std::true_type()) : sum_pixels(all_taps, std::true_type());
    } else {
      few ? sum_pixels(few_taps, std::false_type()) : sum_pixels(all_taps, std::false_type());
    }
  }

  __syncthreads();
  auto& others = shared_memory<StreamSums>().sums;
  const auto place = [&](int of_stream, int i) {
    return (((of_stream - 1) * params.block_units + block_unit) * kLaneSums + i) * 32 + lane;
  };
  if (active && stream > 0) {
#pragma unroll
    for (int i = 0; i < kLaneFilters; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneTaps; ++j) others.store(place(stream, j * kLaneFilters + i), sums[j][i]);
      others.store(place(stream, kLaneTaps * kLaneFilters + i), bias[i]);
    }
  }
  __syncthreads();
  if (!active || stream > 0) return;
  for (int other = 1; other < params.streams; ++other) {
#pragma unroll
    for (int i = 0; i < kLaneFilters; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneTaps; ++j) sums[j][i] += others.load(place(other, j * kLaneFilters + i));
      bias[i] += others.load(place(other, kLaneTaps * kLaneFilters + i));
    }
  }
  const auto filter_of = [&](int i) {
    return slab * params.block_filters + first_filter + i / 4 * 32 + i % 4;
  };
  if (sums_bias && lane < 8) {
#pragma unroll
    for (int i = 0; i < kLaneFilters; ++i) store_sum<T>(params, split, filter_of(i), params.taps, bias[i]);
  }
#pragma unroll
  for (int j = 0; j < kLaneTaps; ++j) {
    const int tap = first_tap + j * 4;
    if (tap >= params.taps) break;
#pragma unroll
    for (int i = 0; i < kLaneFilters; ++i) store_sum<T>(params, split, filter_of(i), tap, sums[j][i]);
  }
}

template <class T>
void launch_wgrad(const ThinWgradParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(WgradShared<T>);
  config.stream = stream;
  launch("conv2d::thin_wgrad", plan.channels_last ? wgrad_kernel<T, true> : wgrad_kernel<T, false>, config,
         params);
}

}  // namespace fastcnn::thin
