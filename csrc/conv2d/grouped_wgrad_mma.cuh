// wgrad of a grouped convolution in half precision on tensor cores (mma.sync m16n8k16, fp32 sums), and the
// bias gradient with it.
//
// Walk: tiles, boxes and splits are those of grouped_wgrad.cuh. The slab's filters are cut into blocks of 16
// (M) and its channels into octets (N); a block meets the octets of its own groups, at every tap. A warp owns
// a unit, one block of filters and 9 of its (octet, tap), and every `streams`-th run of 16 pixels (K). Both
// operands lie in shared memory with a pixel's channels side by side, so transposing ldmatrix brings them,
// each row from the address that its pixel and tap have. Pixels past the tile's last read zeros, dy and x.
// The bias gradient is a ninth of a step: the same A times ones. Streams are added in order in the end.
// Floor: bytes of x and dy once; the tensor cores multiply each filter of a block with the channels of the
// block's other groups, too, and drop that: 2 times the flops at K/g = 8, none dropped at 16 and 32. The
// planner leaves to FMA units what would drop more (K/g = 4). Per byte: dy is read once, x 1 + halo times.
// Bound by memory to C/g = 16, by shared memory (two wavefronts an mma) at 32.
// Registers (ptxas; sm_80, sm_90a): 101, 112: two blocks an SM.
// Why: on FMA units C/g >= 8 needs a multiple of the bytes' time.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/grouped_wgrad_tile.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::grouped {

inline constexpr int kUnitTiles = kGroupedUnitTiles;  // (octet, tap) of a warp
inline constexpr int kUnitPairs = (kUnitTiles + 1) / 2;
inline constexpr int kLaneSums = (kUnitTiles + 1) * 4;  // and the bias gradient's

// Over the arena, when the last tile is done: the sums of streams past the first.
struct WarpSums {
  SharedArray<float, (kGroupedThreads / 32) * 32 * kLaneSums> sums;
};
static_assert(sizeof(WarpSums) <= kGroupedArenaBytes);

// Two ones of T.
template <class T>
__device__ inline uint32_t pair_of_ones() {
  const Vector<T, 2> ones{{from_accumulator<T>(1.0f), from_accumulator<T>(1.0f)}};
  uint32_t word;
  memcpy(&word, &ones, sizeof(word));
  return word;
}

template <class T>
__global__ __launch_bounds__(kGroupedThreads,
                             2) void wgrad_mma_kernel(const __grid_constant__ GroupedWgradParams params) {
  auto& shared = shared_memory<WgradShared<T>>();
  int slab, unit_tile;
  const int split =
      params.unit_tiles.divide(params.slabs.divide(static_cast<int>(blockIdx.x), slab), unit_tile);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int stream = warp / params.block_units, block_unit = warp % params.block_units;
  const int unit = unit_tile * params.block_units + block_unit;
  const bool active = stream < params.streams && unit < params.units;
  const int zeros = params.x.pixels.divisor() * params.x.pitch + params.dy.pixels.divisor() * params.dy.pitch;
  if (threadIdx.x == 0) {
    shared.arena.template store_vector<kVector<T>>(zeros, Vector<T, kVector<T>>{});
  }

  // The unit's filters and its first (octet, tap); the octets of all groups that its filters belong to.
  int part;
  const int first_filter = params.unit_parts.divide(active ? unit : 0, part) * 16;
  const int first_group = first_filter / params.group_out;
  const int last_group = min((first_filter + 15) / params.group_out, params.slab_groups - 1);
  const int first_octet = first_group * params.group_in / 8;
  const int last_octet = (last_group * params.group_in + params.group_in - 1) / 8;
  const auto octet_and_tap = [&](int j, int& octet, int& tap) {
    octet = first_octet + params.tap_div.divide(part * kUnitTiles + j, tap);
    return j < kUnitTiles && octet <= last_octet;
  };
  // Where this lane's rows of each pair of columns lie, counted from a pixel of the box.
  int column[kUnitPairs];
#pragma unroll
  for (int i = 0; i < kUnitPairs; ++i) {
    int octet, tap, s;
    const bool exists = octet_and_tap(i * 2 + lane / 16, octet, tap);
    const int r = params.s_div.divide(tap, s);
    column[i] = exists ? (r * params.tap_rows * params.x.columns + s * params.tap_columns) * params.x.pitch +
                             octet * 8
                       : 0;
  }
  // Past the slab's filters stands the next pixel; those sums are dropped.
  const int filter = first_filter + lane / 8 % 2 * 8;
  const uint32_t ones[2] = {pair_of_ones<T>(), pair_of_ones<T>()};
  const bool sums_bias = params.bias_grad != nullptr && part == 0;

  float sums[kUnitTiles + 1][4] = {};
  const int first_tile = split * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    __syncthreads();
    const int pixels = bring_wgrad_tile(shared, params, slab, tile);
    __syncthreads();
    if (!active) continue;
    for (int pixel = stream * 16; pixel < pixels; pixel += params.streams * 16) {
      uint32_t a[4];
      const int dy = shared.dy_pixel.load(pixel + lane / 16 * 8 + lane % 8);
      ptx::ldmatrix_x4<true>(a, shared.arena.address(dy < 0 ? zeros : dy + filter));
      const int x = shared.x_pixel.load(pixel + lane % 16);
#pragma unroll
      for (int i = 0; i < kUnitPairs; ++i) {
        uint32_t b[4];
        ptx::ldmatrix_x4<true>(b, shared.arena.address(x < 0 ? zeros : x + column[i]));
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        ptx::mma_m16n8k16<T>(sums[i * 2], a, b0, sums[i * 2]);
        if (i * 2 + 1 < kUnitTiles) ptx::mma_m16n8k16<T>(sums[i * 2 + 1], a, b1, sums[i * 2 + 1]);
      }
      if (sums_bias) ptx::mma_m16n8k16<T>(sums[kUnitTiles], a, ones, sums[kUnitTiles]);
    }
  }

  __syncthreads();
  auto& others = shared_memory<WarpSums>().sums;
  const auto place = [&](int of_stream, int i) {
    return ((of_stream * params.block_units + block_unit) * kLaneSums + i) * 32 + lane;
  };
  if (active && stream > 0) {
#pragma unroll
    for (int i = 0; i < kLaneSums; ++i) others.store(place(stream, i), sums[i / 4][i % 4]);
  }
  __syncthreads();
  if (!active || stream > 0) return;
  for (int other = 1; other < params.streams; ++other) {
#pragma unroll
    for (int i = 0; i < kLaneSums; ++i) sums[i / 4][i % 4] += others.load(place(other, i));
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first_filter + lane / 4 + i / 2 * 8;
    if (row >= params.dy.slab_channels) continue;
    const int group = row / params.group_out;
#pragma unroll
    for (int j = 0; j < kUnitTiles; ++j) {
      int octet, tap;
      const bool exists = octet_and_tap(j, octet, tap);
      const int channel = octet * 8 + lane % 4 * 2 + i % 2 - group * params.group_in;
      if (exists && channel >= 0 && channel < params.group_in) {
        store_weight_sum<T>(params, split, slab, row, channel, tap, sums[j][i]);
      }
    }
    if (part == 0 && lane % 4 == 0 && i % 2 == 0) {
      store_bias_sum<T>(params, split, slab, row, sums[kUnitTiles][i]);
    }
  }
}

template <class T>
void launch_wgrad_mma(const GroupedWgradParams& params, const GroupedPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(WgradShared<T>);
  config.stream = stream;
  launch("conv2d::grouped_wgrad_mma", wgrad_mma_kernel<T>, config, params);
}

}  // namespace fastcnn::grouped
