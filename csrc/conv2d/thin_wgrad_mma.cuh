// wgrad of few input channels in half precision on tensor cores (mma.sync m16n8k16, fp32 sums), and the bias
// gradient with it.
//
// Walk: a block takes 64 or 128 filters and a range of tiles of up to 256 output pixels (a split). Of each
// tile it brings the gradient and the box of x to shared memory. A warp owns a unit, 64 filters (M) x 40 or
// 16 taps (N), and every `streams`-th run of 16 pixels (K). The gradient comes by ldmatrix (transposing for
// NHWC), x is gathered, an element for each pixel and tap: a column of B is a tap. The bias gradient is one
// more tap, of ones. Slots without a pixel are zeros in both operands: an infinity of x times a zero would
// be NaN. Streams are added in order in the end, splits by split_sum.
// Floor: bytes of x and dy once, 2*N*P*Q*K*C*R*S flops; a pixel of dy is 128 bytes at K = 64. Waste: taps are
// padded to whole units, filters to 64; x is read 1 + halo times. 16 pixels x 40 taps cost 36 wavefronts of
// shared memory for 20 products. Memory bounds 3x3 and patches; at 7x7/2 shared memory takes as long.
// Registers (ptxas, the most of sm_80 and sm_90a): 86 for 16 taps, 128 for 40: 16 warps an SM or more.
// Why: the generic kernel brings x once a tap, element by element, to FMA units.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "common/launch.h"
#include "conv2d/thin_wgrad_exchanged.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::thin {

inline constexpr int kFilterTiles = kThinMmaFilters / 16;

// Over the arena, when the last tile is done: the sums of streams past the first.
template <int Octets>
struct WarpSums {
  SharedArray<float, (kThinThreads / 32 - 1) * 32 * kFilterTiles * Octets * 4> sums;
};
static_assert(sizeof(WarpSums<kThinUnitOctets>) <= kThinArenaBytes);

template <class T, bool ChannelsLast, int Octets>
__global__ __launch_bounds__(kThinWgradWarps *
                             32) void wgrad_mma_kernel(const __grid_constant__ ThinWgradParams params) {
  auto& shared = shared_memory<WgradShared<T>>();
  int slab, unit_tile;
  const int split =
      params.unit_tiles.divide(params.slabs.divide(static_cast<int>(blockIdx.x), slab), unit_tile);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int stream = warp / params.block_units, block_unit = warp % params.block_units;
  const int unit = unit_tile * params.block_units + block_unit;
  const bool active = stream < params.streams && unit < params.units;
  int part;
  const int block_filter = params.unit_parts.divide(active ? unit : 0, part) * kThinMmaFilters;
  const int first_filter = slab * params.block_filters + block_filter;
  const int filters = params.filters - first_filter;

  // Where the block's taps lie; -1 for the ones of the bias gradient. A lane takes its own anew each tile:
  // they need no registers while the next tile comes.
  for (int at = threadIdx.x; at < params.block_units * Octets * 8; at += blockDim.x) {
    int at_part;
    params.unit_parts.divide(unit_tile * params.block_units + at / (Octets * 8), at_part);
    const int tap = at_part * Octets * 8 + at % (Octets * 8);
    shared.taps.store(at, tap < params.taps ? tap_offset(params, tap) : (tap == params.taps ? -1 : 0));
  }
  const Vector<T, 2> one_pair{{from_accumulator<T>(1.0f), from_accumulator<T>(1.0f)}};
  uint32_t ones;
  memcpy(&ones, &one_pair, sizeof(ones));
  // Of the gradient, the place of this lane's row of the first 16 pixels and filters.
  const int grad = ChannelsLast ? (lane / 16 * 8 + lane % 8) * params.dy_pitch + lane / 8 % 2 * 8
                                : (lane / 8 % 2 * 8 + lane % 8) * params.dy_pitch + lane / 16 * 8;
  const int grad_pixel = ChannelsLast ? params.dy_pitch : 1;
  const int grad_filter = ChannelsLast ? 1 : params.dy_pitch;

  float sums[kFilterTiles][Octets][4] = {};
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
    int taps[Octets];
#pragma unroll
    for (int n = 0; n < Octets; ++n) taps[n] = shared.taps.load((block_unit * Octets + n) * 8 + g);
#pragma unroll 1
    for (int slot = stream * 16; slot < params.slots; slot += params.streams * 16) {
      uint32_t x[Octets][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto pixels = shared.pixels.template load_vector<2>(slot + half * 8 + t * 2);
        const uint32_t bits = (pixels[0] < 0 ? 0u : 0xffffu) | (pixels[1] < 0 ? 0u : 0xffff0000u);
        const int low = pixels[0] ^ (pixels[0] >> 31), high = pixels[1] ^ (pixels[1] >> 31);
#pragma unroll
        for (int n = 0; n < Octets; ++n) {
          const int tap = max(taps[n], 0);
          const Vector<T, 2> pair{{shared.arena.load(low + tap), shared.arena.load(high + tap)}};
          memcpy(&x[n][half], &pair, sizeof(pair));
          x[n][half] = (taps[n] < 0 ? ones : x[n][half]) & bits;
        }
      }
#pragma unroll
      for (int m = 0; m < kFilterTiles; ++m) {
        if (m * 16 >= filters) break;
        uint32_t a[4];
        ptx::ldmatrix_x4<ChannelsLast>(
            a, shared.arena.address(grad + slot * grad_pixel + (block_filter + m * 16) * grad_filter));
#pragma unroll
        for (int n = 0; n < Octets; ++n) ptx::mma_m16n8k16<T>(sums[m][n], a, x[n], sums[m][n]);
      }
    }
  }

  __syncthreads();
  auto& others = shared_memory<WarpSums<Octets>>().sums;
  constexpr int kLaneSums = kFilterTiles * Octets * 4;
  const auto place = [&](int of_stream, int i) {
    return (((of_stream - 1) * params.block_units + block_unit) * kLaneSums + i) * 32 + lane;
  };
  if (active && stream > 0) {
#pragma unroll
    for (int i = 0; i < kLaneSums; ++i) {
      others.store(place(stream, i), sums[i / 4 / Octets][i / 4 % Octets][i % 4]);
    }
  }
  __syncthreads();
  if (!active || stream > 0) return;
  for (int other = 1; other < params.streams; ++other) {
#pragma unroll
    for (int i = 0; i < kLaneSums; ++i) {
      sums[i / 4 / Octets][i / 4 % Octets][i % 4] += others.load(place(other, i));
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneSums; ++i) {
    const int filter = first_filter + i / 4 / Octets * 16 + i % 4 / 2 * 8 + g;
    const int tap = (part * Octets + i / 4 % Octets) * 8 + t * 2 + i % 2;
    store_sum<T>(params, split, filter, tap, sums[i / 4 / Octets][i / 4 % Octets][i % 4]);
  }
}

template <class T>
void launch_wgrad_mma(const ThinWgradParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(WgradShared<T>);
  config.stream = stream;
  const auto kernel =
      plan.unit_octets == 2
          ? (plan.channels_last ? wgrad_mma_kernel<T, true, 2> : wgrad_mma_kernel<T, false, 2>)
          : (plan.channels_last ? wgrad_mma_kernel<T, true, kThinUnitOctets>
                                : wgrad_mma_kernel<T, false, kThinUnitOctets>);
  launch("conv2d::thin_wgrad_mma", kernel, config, params);
}

}  // namespace fastcnn::thin
