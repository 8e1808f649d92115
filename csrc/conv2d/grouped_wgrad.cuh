// wgrad of a grouped convolution on FMA units, and the bias gradient with it.
//
// Walk: a block takes a slab of groups and a range of tiles of output pixels (a split). Of each tile it
// brings dy and the box of x that the tile sees to shared memory. A thread owns a unit, 4 filters x 4
// channels x 3 taps of one group, and every `streams`-th pixel; in the end the streams' sums are added in
// order through shared memory, and the splits' by split_sum. Only pixels that exist are walked: a product
// with a pixel beyond the image would turn an infinity of x into NaN.
// Floor: bytes of x and dy once; 2*N*P*Q*K*(C/g)*R*S flops at the FMA rate: at 3x3 memory bounds C/g = 4, FMA
// the rest. Per byte: dy is read once, x 1 + halo times (1.2 to 1.4 at 3x3); partial sums are written and
// read once per split. Waste: none but for taps that are no multiple of 3. A pixel costs 4 vectors from
// shared memory for 48 products.
// Registers (ptxas; sm_80, sm_90a): 98, 112 for float; 106, 117 for the half types: two blocks an SM.
// Why: the generic kernel multiplies 128 x 32 results for a group's K/g x (C/g)*R*S, and brings x once a tap.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/grouped_wgrad_tile.cuh"

namespace fastcnn::grouped {

inline constexpr int kUnit = 4;  // filters, and channels
inline constexpr int kUnitSums = kUnit * kUnit * kGroupedUnitTaps;
inline constexpr int kStreamSums = kUnitSums + kUnit;  // and the bias gradient's

// Over the arena, when the last tile is done.
struct StreamShared {
  SharedArray<float, kGroupedThreads * kStreamSums> sums;
};
static_assert(sizeof(StreamShared) <= kGroupedArenaBytes);

// 4 filters, 4 channels and 3 taps of a group of the slab.
struct Unit {
  int group, filter, channel, tap;
};

__device__ inline Unit unit_at(const GroupedWgradParams& params, int unit) {
  int tap, channel, filter;
  const int group = params.filter_units.divide(
      params.channel_units.divide(params.tap_units.divide(unit, tap), channel), filter);
  return {group, filter * kUnit, channel * kUnit, tap * kGroupedUnitTaps};
}

template <class T>
__global__ __launch_bounds__(kGroupedThreads,
                             2) void wgrad_kernel(const __grid_constant__ GroupedWgradParams params) {
  auto& shared = shared_memory<WgradShared<T>>();
  int slab, unit_tile;
  const int split =
      params.unit_tiles.divide(params.slabs.divide(static_cast<int>(blockIdx.x), slab), unit_tile);
  const int stream = static_cast<int>(threadIdx.x) / params.block_units;
  const int block_unit = static_cast<int>(threadIdx.x) % params.block_units;
  const int first_unit = unit_tile * params.block_units;
  const bool active = stream < params.streams && first_unit + block_unit < params.units;

  const Unit unit = unit_at(params, min(first_unit + block_unit, params.units - 1));
  const int filter = unit.group * params.group_out + unit.filter;
  const int channel = unit.group * params.group_in + unit.channel;
  int tap[kGroupedUnitTaps];
#pragma unroll
  for (int t = 0; t < kGroupedUnitTaps; ++t) {
    int s;
    const int r = params.s_div.divide(min(unit.tap + t, params.taps - 1), s);
    tap[t] = (r * params.tap_rows * params.x.columns + s * params.tap_columns) * params.x.pitch + channel;
  }
  const bool sums_bias = params.bias_grad != nullptr && unit.tap == 0 && unit.channel == 0;

  float sums[kGroupedUnitTaps][kUnit][kUnit] = {};  // [tap][filter][channel]
  float bias[kUnit] = {};
  const int first_tile = split * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    __syncthreads();
    const int pixels = bring_wgrad_tile(shared, params, slab, tile);
    __syncthreads();
    if (!active) continue;
    float run[kUnit] = {};
    for (int pixel = stream; pixel < pixels; pixel += params.streams) {
      const int x_at = shared.x_pixel.load(pixel);
      const auto dy = shared.arena.template load_vector<4>(shared.dy_pixel.load(pixel) + filter);
#pragma unroll
      for (int t = 0; t < kGroupedUnitTaps; ++t) {
        const auto x = shared.arena.template load_vector<4>(x_at + tap[t]);
#pragma unroll
        for (int i = 0; i < kUnit; ++i) {
#pragma unroll
          for (int j = 0; j < kUnit; ++j) sums[t][i][j] += to_accumulator(dy[i]) * to_accumulator(x[j]);
        }
      }
      if (sums_bias) {
#pragma unroll
        for (int i = 0; i < kUnit; ++i) run[i] += to_accumulator(dy[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnit; ++i) bias[i] += run[i];
  }

  __syncthreads();
  auto& streams = shared_memory<StreamShared>().sums;
  if (active) {
    const int at = (stream * params.block_units + block_unit) * kStreamSums;
#pragma unroll
    for (int t = 0; t < kGroupedUnitTaps; ++t) {
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        streams.store_vector<4>(
            at + (t * kUnit + i) * kUnit,
            Vector<float, 4>{{sums[t][i][0], sums[t][i][1], sums[t][i][2], sums[t][i][3]}});
      }
    }
    streams.store_vector<4>(at + kUnitSums, Vector<float, 4>{{bias[0], bias[1], bias[2], bias[3]}});
  }
  __syncthreads();

  const int block_units = min(params.block_units, params.units - first_unit);
  const int results = block_units * kStreamSums;
  for (int result = threadIdx.x; result < results; result += blockDim.x) {
    const int result_unit = result / kStreamSums, element = result % kStreamSums;
    float sum = 0;
    for (int s = 0; s < params.streams; ++s) {
      sum += streams.load((s * params.block_units + result_unit) * kStreamSums + element);
    }
    const Unit at = unit_at(params, first_unit + result_unit);
    const int slab_filter = at.group * params.group_out + at.filter;
    if (element >= kUnitSums) {
      if (at.tap == 0 && at.channel == 0) {
        store_bias_sum<T>(params, split, slab, slab_filter + element - kUnitSums, sum);
      }
      continue;
    }
    store_weight_sum<T>(params, split, slab, slab_filter + element / kUnit % kUnit,
                        at.channel + element % kUnit, at.tap + element / (kUnit * kUnit), sum);
  }
}

template <class T>
void launch_wgrad(const GroupedWgradParams& params, const GroupedPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(WgradShared<T>);
  config.stream = stream;
  launch("conv2d::grouped_wgrad", wgrad_kernel<T>, config, params);
}

}  // namespace fastcnn::grouped
