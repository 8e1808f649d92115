// Convolution, bias, activation and 2 x 2 maximum in half precision on tensor cores (mma.sync m16n8k16, fp32
// sums).
//
// Walk: tiles, chunks of channels and the maximum are those of pooled.cuh. A warp multiplies 16 windows by 32
// filters. Of a 16 x 16 operand of pixels, rows 0..7 are the left pixels of 8 windows and rows 8..15 the
// right ones, and two such operands hold the upper and the lower pixels: so each lane ends with the four sums
// of a window, and the maximum needs no exchange. Pixels lie in shared memory as [image row][class of column]
// [column][channel], where columns of one class are a window's step apart: those that ldmatrix takes together
// are neighbours, an odd number of 16-byte vectors apart, in different banks. Weights lie in the order of
// mma's fragments, brought once a block where all channels fit. Results are exchanged among the 4 lanes of a
// window, so that each stores 8 neighbouring filters.
// Floor: bytes as in pooled.cuh; 2*N*4*I*J*K*C*R*S flops of the tensor cores, of which K < 32 and C no
// multiple of 16 waste the rest. A step costs a warp 4 ldmatrix of 4 wavefronts and 4 weight reads of 2 for
// 16 mma: shared memory and tensor cores alike.
// Registers (ptxas, both types; sm_80, sm_90a): 123, 124, two blocks an SM.
// Why: on FMA units a layer of 32 channels takes many times the time of its bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/gather_row.cuh"
#include "conv2d/pooled_window.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::pooled {

inline constexpr int kSets = kPooledMmaWindows / 8;         // of 8 windows, of a warp
inline constexpr int kFilterTiles = kPooledMmaFilters / 8;  // of 8 filters, of a warp
inline constexpr int kDepth = 16;                           // of one mma

template <class T>
struct MmaShared {
  SharedArray<T, kPooledMmaArenaBytes / 2> arena;  // the box, behind it the weights' fragments
  // From the place of a window to the pixel that its left and its right upper pixel see at each tap.
  SharedArray<int, 2 * kPooledMmaTaps> taps;
};

// The place of a column of the box among the pixels of its image row.
__device__ inline int column_place(const PooledParams& params, int column) {
  int column_class;
  const int at = params.column_classes.divide(column, column_class);
  return column_class * params.class_columns + at;
}

// The pixels of channels [first, first + count) that the tile sees, 8 channels an item; zeros outside the
// image and past the last channel.
template <class T>
__device__ inline void bring_pixels(MmaShared<T>& shared, const PooledParams& params, TileStart start,
                                    int first, int count) {
  constexpr int V = 8;
  const T* const data = static_cast<const T*>(params.input.data) + first * params.input.stride_c;
  const int row_pixels = params.class_columns * params.column_classes.divisor();
  const int items = params.box_pixels.divisor() * params.vectors.divisor();
#pragma unroll 2
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    // Neighbouring threads take what lies side by side: channels, or else pixels.
    int vector, index;
    if (params.channels_fast) {
      index = params.vectors.divide(item, vector);
    } else {
      vector = params.box_pixels.divide(item, index);
    }
    const BoxPixel pixel(params, start, index);
    const int channel = vector * V;
    const int64_t offset = pixel.offset + channel * params.input.stride_c;
    const int at =
        (pixel.image_row * row_pixels + column_place(params, pixel.column)) * params.pitch + channel;
    if (params.channels_fast) {
      const bool exists = pixel.inside && channel < count;
      ptx::cp_async<16>(shared.arena.address(at), data + (exists ? offset : 0), exists);
    } else {
      const T* const source = data + offset;
      Vector<T, V> values;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = load_global_if(pixel.inside && channel + v < count, source + v * params.input.stride_c);
      }
      shared.arena.template store_vector<V>(at, values);
    }
  }
  if (params.channels_fast) {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
}

// The block's filters of channels [first, first + count) in the order of fragments: [8 filters][step][lane]
// [4], a step being 16 channels of a tap. A lane takes a pair of channels of a tap, the filters are spread
// over warps. Zeros past the last filter and channel.
template <class T>
__device__ inline void bring_fragments(MmaShared<T>& shared, const PooledParams& params, int weights,
                                       int first_filter, int first, int count) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const T* const data = static_cast<const T*>(params.weight.data) + first * params.weight.stride_c +
                        first_filter * params.weight.stride_n;
  const int filters = min(params.block_filters, params.filters - first_filter);
  const int pairs = params.chunk_pairs.divisor();
  const int tap_steps = params.chunk / kDepth, steps = tap_steps * params.taps;
  for (int element = lane; element < pairs * params.taps; element += 32) {
    int pair, tap, s;
    if (params.weight_channels_inner) {
      tap = params.chunk_pairs.divide(element, pair);
    } else {
      pair = params.tap_div.divide(element, tap);
    }
    const int r = params.kernel_w.divide(tap, s);
    const int c = pair * 2, k = c % kDepth;
    const T* const source =
        data + c * params.weight.stride_c + r * params.weight.stride_h + s * params.weight.stride_w;
    const int at = weights + (tap * tap_steps + c / kDepth) * 128 + k % 8 / 2 * 4 + k / 8 * 2;
#pragma unroll 8
    for (int filter = warp; filter < params.block_filters; filter += warps) {
      const T* const of_filter = source + filter * params.weight.stride_n;
      Vector<T, 2> values;
      values[0] = load_global_if(filter < filters && c < count, of_filter);
      values[1] = load_global_if(filter < filters && c + 1 < count, of_filter + params.weight.stride_c);
      shared.arena.template store_vector<2>(at + (filter / 8 * steps * 32 + filter % 8 * 4) * 4, values);
    }
  }
}

// 8 windows' results: `sums` of the upper and the lower pixels, as mma leaves them; each lane stores filters
// [filter, filter + 8) + 8 * (lane % 4) of window lane / 4.
template <class T>
__device__ inline void store_set(const PooledParams& params, TileStart start, int slot, int filter, int lane,
                                 const float (&upper)[kFilterTiles][4],
                                 const float (&lower)[kFilterTiles][4]) {
  const int t = lane % 4;
  uint32_t pairs[kFilterTiles][2];  // two filters' results, and their offsets
#pragma unroll
  for (int n = 0; n < kFilterTiles; ++n) {
    Vector<T, 2> best;
    Vector<uint8_t, 2> best_offset;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int k = filter + n * 8 + t * 2 + j;
      const float bias = k < params.filters ? load_bias<T>(params.epilogue, k) : 0.0f;
      const float sums[kPixels] = {upper[n][j], upper[n][2 + j], lower[n][j], lower[n][2 + j]};
      pool<T>(params, sums, bias, best[j], best_offset[j]);
    }
    memcpy(&pairs[n][0], &best, sizeof(best));
    pairs[n][1] = best_offset[0] | best_offset[1] << 8;
  }
  uint32_t words[2 * kFilterTiles];
  gather_row(pairs, t, words);

  int tile_column, i;
  const int tile_row = params.tile_column_div.divide(slot, tile_column);
  const int row = start.row + tile_row, column = start.column + tile_column;
  const int first = filter + t * 8;
  if (tile_row >= params.tile_rows || row >= params.rows || column >= params.columns ||
      first >= params.filters) {
    return;
  }
  const int n = params.image_rows.divide(row, i);
  const auto element = [&](const TensorView& view) {
    return n * view.stride_n + i * view.stride_h + column * view.stride_w + first * view.stride_c;
  };
  T* const output = static_cast<T*>(params.output.data) + element(params.output);
  uint8_t* const offsets = static_cast<uint8_t*>(params.offsets.data);
  Vector<T, 8> best;
  Vector<uint8_t, 8> best_offset;
#pragma unroll
  for (int v = 0; v < 8; v += 2) {
    Vector<T, 2> two;
    memcpy(&two, &words[v], sizeof(two));
    best[v] = two[0];
    best[v + 1] = two[1];
    best_offset[v] = static_cast<uint8_t>(words[v + 1]);
    best_offset[v + 1] = static_cast<uint8_t>(words[v + 1] >> 8);
  }
  if (params.vector_store) {
    store_global<8>(output, best);
    if (offsets != nullptr) store_global<8>(offsets + element(params.offsets), best_offset);
    return;
  }
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    if (first + v >= params.filters) return;
    store_global(output + v * params.output.stride_c, best[v]);
    if (offsets != nullptr) {
      store_global(offsets + element(params.offsets) + v * params.offsets.stride_c, best_offset[v]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kPooledThreads, 2) mma_kernel(const __grid_constant__ PooledParams params) {
  auto& shared = shared_memory<MmaShared<T>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int filter_warp = warp % params.filter_warps, window_warp = warp / params.filter_warps;
  const BlockTiles tiles(params);
  const int first_filter = tiles.filter_tile * params.block_filters;
  const int row_pixels = params.class_columns * params.column_classes.divisor();
  const int weights = params.tile_rows * params.box_rows * row_pixels * params.pitch;
  const int tap_steps = params.chunk / kDepth;

  for (int tap = threadIdx.x; tap < 2 * params.taps; tap += blockDim.x) {
    int s;
    const int r = params.kernel_w.divide(tap / 2, s);
    const int column = s * params.dilation_w + tap % 2 * params.stride_w;
    shared.taps.store(tap,
                      (r * params.dilation_h * row_pixels + column_place(params, column)) * params.pitch);
  }

  // What this lane's address of ldmatrix is of: window lane % 8 of a set, its left or right pixel, the first
  // or the second 8 channels. A slot past the tile computes the tile's first window and stores nothing.
  const int side = lane / 8 % 2, half = lane / 16;
  int seen[kSets];
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    int tile_column;
    const int slot = window_warp * kPooledMmaWindows + set * 8 + lane % 8;
    const int tile_row = params.tile_column_div.divide(slot, tile_column);
    const int pixel = tile_row < params.tile_rows ? tile_row * params.box_rows * row_pixels + tile_column : 0;
    seen[set] = pixel * params.pitch + half * 8;
  }
  const int down = params.stride_h * row_pixels * params.pitch;
  const int tile_weights = tap_steps * params.taps * 128;  // of 8 filters
  const int warp_weights = weights + filter_warp * kFilterTiles * tile_weights + lane * 4;

  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    const TileStart start(params, tile);
    float sums[kSets][2][kFilterTiles][4] = {};
    for (int first = 0; first < params.channels; first += params.chunk) {
      const int count = min(params.chunk, params.channels - first);
      __syncthreads();
      if (tile == tiles.first) {
        bring_fragments(shared, params, weights, first_filter, first, count);
      }
      bring_pixels(shared, params, start, first, count);
      __syncthreads();
      const int steps = (count + kDepth - 1) / kDepth;
      for (int tap = 0; tap < params.taps; ++tap) {
        const int seen_tap = shared.taps.load(tap * 2 + side);
        for (int step = 0; step < steps; ++step) {
          uint32_t a[kSets][2][4];
#pragma unroll
          for (int set = 0; set < kSets; ++set) {
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
              ptx::ldmatrix_x4(a[set][lower],
                               shared.arena.address(seen[set] + seen_tap + lower * down + step * kDepth));
            }
          }
#pragma unroll
          for (int n = 0; n < kFilterTiles; ++n) {
            const auto fragment = shared.arena.template load_vector<4>(warp_weights + n * tile_weights +
                                                                       (tap * tap_steps + step) * 128);
            uint32_t b[2];
            memcpy(b, &fragment, sizeof(b));
#pragma unroll
            for (int set = 0; set < kSets; ++set) {
#pragma unroll
              for (int lower = 0; lower < 2; ++lower) {
                ptx::mma_m16n8k16<T>(sums[set][lower][n], a[set][lower], b, sums[set][lower][n]);
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      store_set<T>(params, start, window_warp * kPooledMmaWindows + set * 8 + lane / 4,
                   first_filter + filter_warp * kPooledMmaFilters, lane, sums[set][0], sums[set][1]);
    }
  }
}

template <class T>
void launch_mma(const PooledPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(MmaShared<T>);
  config.stream = stream;
  launch("conv2d::pooled_fprop_mma", mma_kernel<T>, config, plan.params);
}

}  // namespace fastcnn::pooled
