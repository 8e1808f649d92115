// fprop of few input channels in half precision on tensor cores (mma.sync m16n8k16, fp32 sums).
//
// Walk: a block holds the weights of its filters in the order of mma's fragments and walks tiles of up to 512
// output pixels. Of each it brings the box of x to shared memory. A warp multiplies 32 pixels by 64 filters
// at a time, over steps of 16 taps; fragments of pixels are gathered from the box, two neighbouring elements
// a load where rows, pixels and their steps are even (a run of taps that begins at an odd element is then led
// by one of padding), else element by element. What pads the taps is zero on both sides: an infinity times a
// zero weight would be NaN. NHWC: pixels are the rows of the product; NCHW: the filters are, from the same
// registers. Either way 4 lanes exchange sums so that together they store 64 neighbouring bytes, 16 each.
// Floor: bytes of x and y once, 2*N*P*Q*K*C*R*S flops. y is most of the bytes at K = 64: 128 a pixel, to
// which x adds 6 (3x3/1, C = 3) to 24 (7x7/2). Waste: taps are padded to a multiple of 16 (147 to 160, 27 to
// 32), filters to 64; x is read 1 + halo times. A step costs 26 wavefronts of shared memory for 16 products.
// Memory bounds 3x3 and patches by far; 7x7/2 needs its bytes' time of tensor cores, too.
// Registers (ptxas, the most of sm_80 and sm_90a): 128: two blocks an SM.
// Why: the generic kernel brings every tap of every pixel from memory, element by element, to FMA units.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "common/launch.h"
#include "conv2d/gather_row.cuh"
#include "conv2d/thin_fprop_tile.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::thin {

inline constexpr int kOctets = kThinMmaFilters / 8;  // of filters
inline constexpr int kPixelOctets = kThinMmaPixels / 8;

template <class T>
struct FpropMmaShared {
  SharedArray<T, kArena<T>> arena;  // fragments of the weights, the box
  // Paired: of each pair of taps, where it lies and which of its bits count; else where each tap lies, or -1.
  SharedArray<int, kThinMaxReduction> taps;
  SharedArray<int, kThinSlots> seen;  // where a pixel of the tile sees its first tap
  SharedArray<float, kThinFilters> bias;
};

// An index in shared memory of the weight of filter `filter` of the block at reduction index `k`:
// [64 filters][step][octet of filters][lane][what a lane holds].
__device__ inline int fragment_index(int steps, int filter, int k) {
  const int step = filter / kThinMmaFilters * steps + k / 16;
  const int lane = filter % 8 * 4 + k % 8 / 2;
  return ((step * kOctets + filter % kThinMmaFilters / 8) * 32 + lane) * 4 + k % 16 / 8 * 2 + k % 2;
}

template <class T, bool Paired>
__device__ inline void write_taps(FpropMmaShared<T>& shared, const ThinFpropParams& params) {
  for (int at = threadIdx.x * 2; at < params.steps * 16; at += blockDim.x * 2) {
    const TapElement low = tap_element(params.x, params.taps, at);
    const TapElement high = tap_element(params.x, params.taps, at + 1);
    Vector<int, 2> entry;
    if (Paired) {
      const unsigned bits = (low.exists ? 0xffffu : 0u) | (high.exists ? 0xffff0000u : 0u);
      // Where nothing counts, any place that lies as evenly.
      const int offset = low.exists ? low.offset : (high.exists ? high.offset - 1 : -params.taps.lead);
      entry = {{offset, static_cast<int>(bits)}};
    } else {
      entry = {{low.exists ? low.offset : -1, high.exists ? high.offset : -1}};
    }
    shared.taps.template store_vector<2>(at, entry);
  }
}

// Two taps of a pixel as a word of a fragment.
template <class T, bool Paired>
__device__ inline uint32_t load_pair(const SharedArray<T, kArena<T>>& arena, int pixel,
                                     const Vector<int, 2>& entry) {
  uint32_t word;
  Vector<T, 2> pair;
  if (Paired) {
    pair = arena.template load_vector<2>(pixel + entry[0]);
    memcpy(&word, &pair, sizeof(word));
    return word & static_cast<uint32_t>(entry[1]);
  }
  memset(&pair, 0, sizeof(pair));
  if (entry[0] >= 0) pair[0] = arena.load(pixel + entry[0]);
  if (entry[1] >= 0) pair[1] = arena.load(pixel + entry[1]);
  memcpy(&word, &pair, sizeof(word));
  return word;
}

template <class T, bool Paired, bool ChannelsLast>
__global__ __launch_bounds__(kThinThreads,
                             2) void fprop_mma_kernel(const __grid_constant__ ThinFpropParams params) {
  auto& shared = shared_memory<FpropMmaShared<T>>();
  int slab;
  const int block_chunk = params.slabs.divide(static_cast<int>(blockIdx.x), slab);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int first_filter = slab * params.slab_filters;
  const int filters = min(params.slab_filters, params.filters - first_filter);
  const int block_weights = kOctets * params.steps * 128;
  const int box_start = params.filter_blocks * block_weights;

  for (int at = threadIdx.x * kVector<T>; at < box_start; at += blockDim.x * kVector<T>) {
    shared.arena.template store_vector<kVector<T>>(at, Vector<T, kVector<T>>{});
  }
  write_taps<T, Paired>(shared, params);
  write_seen(shared.seen, params, params.pixel_blocks * kThinMmaPixels);
  for (int at = threadIdx.x; at < params.filter_blocks * kThinMmaFilters; at += blockDim.x) {
    shared.bias.store(at, at < filters ? load_bias<T>(params.epilogue, first_filter + at) : 0.0f);
  }
  __syncthreads();
  bring_weights(shared.arena, params, first_filter, filters,
                [&](int filter, int k) { return fragment_index(params.steps, filter, k); });

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
      const int first_slot = params.block_filters.divide(item, filter_block) * kThinMmaPixels;
      int seen[kPixelOctets];
#pragma unroll
      for (int i = 0; i < kPixelOctets; ++i) seen[i] = start + shared.seen.load(first_slot + i * 8 + g);

      // [16 pixels][octet of filters], or [16 filters][octet of pixels].
      float sums[kOctets * kPixelOctets / 2][4] = {};
      int fragments = filter_block * block_weights + lane * 4;
#pragma unroll 1
      for (int step = 0; step < params.steps; ++step, fragments += kOctets * 128) {
        uint32_t x[kPixelOctets][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto entry = shared.taps.template load_vector<2>(step * 16 + half * 8 + t * 2);
#pragma unroll
          for (int i = 0; i < kPixelOctets; ++i) {
            x[i][half] = load_pair<T, Paired>(shared.arena, seen[i], entry);
          }
        }
#pragma unroll
        for (int n = 0; n < kOctets; n += 2) {
          uint32_t w[2][2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const auto fragment = shared.arena.template load_vector<4>(fragments + (n + i) * 128);
            memcpy(w[i], &fragment, sizeof(w[i]));
          }
          if (ChannelsLast) {
#pragma unroll
            for (int m = 0; m < kPixelOctets; m += 2) {
              const uint32_t a[4] = {x[m][0], x[m + 1][0], x[m][1], x[m + 1][1]};
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                auto& sum = sums[m / 2 * kOctets + n + i];
                ptx::mma_m16n8k16<T>(sum, a, w[i], sum);
              }
            }
          } else {
            const uint32_t a[4] = {w[0][0], w[1][0], w[0][1], w[1][1]};
#pragma unroll
            for (int m = 0; m < kPixelOctets; ++m) {
              auto& sum = sums[n / 2 * kPixelOctets + m];
              ptx::mma_m16n8k16<T>(sum, a, x[m], sum);
            }
          }
        }
      }

      const int64_t base = at.image * params.output.stride_n + first_filter * params.output.stride_c;
#pragma unroll
      for (int i = 0; i < kOctets * kPixelOctets / 2; i += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float pairs[4][2], values[8];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            pairs[j][0] = sums[i + j][half * 2];
            pairs[j][1] = sums[i + j][half * 2 + 1];
          }
          gather_row(pairs, t, values);
          // The 8 sums are a pixel's of neighbouring filters, or a filter's of neighbouring pixels.
          const int slot = ChannelsLast ? first_slot + i / kOctets * 16 + half * 8 + g : first_slot + t * 8;
          const int filter = filter_block * kThinMmaFilters +
                             (ChannelsLast ? i % kOctets * 8 + t * 8 : i / 4 * 16 + half * 8 + g);
          int w;
          const int h = params.tile_columns.divide(slot, w);
          Vector<float, 8> sum, bias;
#pragma unroll
          for (int v = 0; v < 8; ++v)
            sum[v] = values[v], bias[v] = shared.bias.load(ChannelsLast ? filter + v : filter);
          if (h >= params.tile_h || at.row + h >= params.out_h || at.column + w >= params.out_w ||
              filter >= filters) {
            continue;
          }
          const int64_t offset = base + (at.row + h) * params.output.stride_h +
                                 (at.column + w) * params.output.stride_w + filter * params.output.stride_c;
          if (ChannelsLast) {
            store_row<T, 8>(params, sum, bias, offset, params.output.stride_c, filters - filter);
          } else {
            store_row<T, 8>(params, sum, bias, offset, params.output.stride_w, params.out_w - at.column - w);
          }
        }
      }
    }
  }
}

template <class T>
void launch_fprop_mma(const ThinFpropParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(FpropMmaShared<T>);
  config.stream = stream;
  const auto kernel =
      plan.paired
          ? (plan.channels_last ? fprop_mma_kernel<T, true, true> : fprop_mma_kernel<T, true, false>)
          : (plan.channels_last ? fprop_mma_kernel<T, false, true> : fprop_mma_kernel<T, false, false>);
  launch("conv2d::thin_fprop_mma", kernel, config, params);
}

}  // namespace fastcnn::thin
