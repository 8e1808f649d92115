// wgrad of few output channels (K <= 8) at stride 1: what it needs beside the kernels of few input channels.
//
// dw[k][c][r][s] sums dy[k][p][q] * x[c][p + r - pad][q + s - pad]. Over the pixels of x it is the gradient
// of a layer whose image is dy, of K channels, and whose gradient is x, of C filters; taps are mirrored,
// padding is what the window reaches beyond pad, be it negative. So thin_wgrad.cuh and thin_wgrad_mma.cuh
// serve as they are: the planner exchanges x and dy and turns the output's strides around.
//
// Floor: bytes of x and dy once, 2*N*H*W*K*C*R*S flops. x, nearly all of the bytes, comes without a halo; dy
// has one. Waste: taps are padded to units of 16 or 40 (float32: 16 or 32), channels to 64. Half precision is
// bound by memory up to some 100 taps of all filters (3x3 with K = 8), by shared memory beyond; float32 by
// FMA units from 3x3 with K = 2 on.
// Why: the generic kernel has 16 or 32 rows for the K filters, and brings x once a tap.
//
// What differs: the activation's backward is the box's. The bias gradient is a sum over the box. And what
// pads the box meets pixels of x that exist: mended_sum.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/thin_wgrad_tile.cuh"

namespace fastcnn::thin {

// Takes the box, which is dy's, past its activation, and adds up the tile's part of dy: the pixels at the
// places of the tile's own, and behind the last ones the rest, all of which lie in the box. Not inlined, and
// without a register from tile to tile: the kernels' are taken.
template <class T>
[[gnu::noinline]] __device__ void finish_box(WgradShared<T>& shared, const ThinWgradParams& params,
                                             int tile) {
  const ThinBox& box = params.x;
  const T* const saved = static_cast<const T*>(params.box_activation.saved);
  const auto [image, row, column] = wgrad_tile(params, tile);
  const int end_row = row + params.tile_h < params.out_h ? row + params.tile_h : box.image_h;
  const int end_column = column + params.tile_w < params.out_w ? column + params.tile_w : box.image_w;
  const int start = shared.pixels.load(0);
  const bool first = tile % params.tiles_per_block == 0;
  for (int channel = 0; channel < params.channels; ++channel) {
    float sum = 0;
#pragma unroll 1
    for (int pixel = threadIdx.x; pixel < box.rows * box.columns; pixel += blockDim.x) {
      int w;
      const int h = params.box_columns.divide(pixel, w);
      const int p = params.first_h + row + h, q = params.first_w + column + w;
      if (static_cast<unsigned>(p) >= static_cast<unsigned>(box.image_h) ||
          static_cast<unsigned>(q) >= static_cast<unsigned>(box.image_w)) {
        continue;
      }
      const int at =
          start + channel * (box.planes > 1 ? box.plane_pitch : 1) + h * box.row_pitch + w * box.pixel;
      Vector<T, 1> dy{{shared.arena.load(at)}};
      if (saved != nullptr) {
        const int64_t offset = image * box.view.stride_n + channel * box.view.stride_c +
                               p * box.view.stride_h + q * box.view.stride_w;
        dy = through_activation(params.box_activation, dy, load_global<1>(saved + offset));
        shared.arena.store(at, dy[0]);
      }
      if (p >= row && p < end_row && q >= column && q < end_column) sum += to_accumulator(dy[0]);
    }
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (threadIdx.x % 32 != 0) continue;
    const int place = static_cast<int>(threadIdx.x) / 32 * kThinMostOutputs + channel;
    shared.box_sums.store(place, first ? sum : shared.box_sums.load(place) + sum);
  }
  const bool last = (tile + 1) % params.tiles_per_block == 0 || tile + 1 == params.tiles;
  if (params.box_sums == nullptr || !last) return;
  // Of the blocks that share the split, the first stores the sums, its warps' added in order.
  __syncthreads();
  const int shares = params.slabs.divisor() * params.unit_tiles.divisor();
  const int split = static_cast<int>(blockIdx.x) / shares, channel = static_cast<int>(threadIdx.x);
  if (channel >= params.channels || static_cast<int>(blockIdx.x) % shares != 0) return;
  float sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
    sum += shared.box_sums.load(warp * kThinMostOutputs + channel);
  }
  store_bias_sum<T>(params, split, params.box_sums, channel, sum);
}

}  // namespace fastcnn::thin
