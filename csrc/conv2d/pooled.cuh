// Convolution, bias, activation and 2 x 2 maximum on FMA units.
//
// Walk: a block takes `block_filters` filters and walks tiles of windows: rows (n, i) counted through the
// batch by columns j. A chunk of channels at a time, the pixels that the tile sees and the chunk's weights
// come to shared memory as floats, [channel][row][image row][column] and [channel][tap][filter]. A thread
// holds the 4 pixels of one window x 8 filters; a warp of a large problem is 8 windows x 4 x 8 filters, so
// that its reads of weights and of pixels are mostly broadcasts. The maximum is taken in registers, of
// rounded activations, as a pool of its own would see them. Where windows are too few to fill the chip,
// `slices` groups of threads share each chunk's channels; their sums meet in shared memory and are added in
// order. Floor: bytes of x, weights, pooled y and offsets once: the convolution's output, four times y, is
// neither written nor read. 2*N*4*I*J*K*C*R*S flops at the FMA rate bound it from a few channels on; one
// channel is bound by both. Per byte: x is read twice at 3 x 3 (neighbouring rows of windows share two of
// four image rows), once more for every block_filters filters; the weights once a tile, or once a block where
// all channels fit. A channel at 3 x 3 costs a thread 8 two-float reads and 18 broadcasts for 288 products.
// Registers (ptxas, all types; sm_80, sm_90a): 80, three blocks an SM.
// Why: the first layer's output takes as long to write as to compute, and a pool would read it again.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/epilogue.cuh"
#include "conv2d/pooled.h"
#include "conv2d/pooled_window.cuh"

namespace fastcnn::pooled {

struct Shared {
  SharedArray<float, kPooledArena> arena;  // the box, behind it the weights; the slices' sums at the end
};

// The pixels of channels [first, first + count) that the tile sees; zeros outside the image. One lane an
// element along columns, or V channels of a pixel as one access.
template <class T>
__device__ inline void bring_box(Shared& shared, const PooledParams& params, TileStart start, int first,
                                 int count) {
  constexpr int V = 16 / sizeof(T);
  const T* const data = static_cast<const T*>(params.input.data) + first * params.input.stride_c;
  const int items =
      params.tile_rows * params.box_rows * params.box_columns.divisor() * params.vectors.divisor();
#pragma unroll 2
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int vector;
    const BoxPixel pixel(params, start, params.vectors.divide(item, vector));
    const bool inside = pixel.inside && vector * V < count;
    const T* const source = data + pixel.offset;
    const int at = pixel.image_row * params.pitch + pixel.column;
    if (params.channels_fast) {
      const Vector<T, V> values = load_global_if<V>(inside, source + vector * V);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        shared.arena.store((vector * V + v) * params.plane + at, to_accumulator(values[v]));
      }
    } else {
#pragma unroll 4
      for (int c = 0; c < count; ++c) {
        shared.arena.store(c * params.plane + at,
                           to_accumulator(load_global_if(inside, source + c * params.input.stride_c)));
      }
    }
  }
}

// The block's filters of channels [first, first + count): a lane an element of a filter, the filters spread
// over warps. Filters past the last are zeros.
template <class T>
__device__ inline void bring_weights(Shared& shared, const PooledParams& params, int first_filter, int first,
                                     int count) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const T* const data = static_cast<const T*>(params.weight.data) + first * params.weight.stride_c +
                        first_filter * params.weight.stride_n;
  const int weights = params.chunk * params.plane;
  const int filters = min(params.block_filters, params.filters - first_filter);
  for (int element = lane; element < params.chunk * params.taps; element += 32) {
    int c, tap, s;
    if (params.weight_channels_inner) {
      tap = params.chunk_div.divide(element, c);
    } else {
      c = params.tap_div.divide(element, tap);
    }
    if (c >= count) continue;
    const int r = params.kernel_w.divide(tap, s);
    const T* const source =
        data + c * params.weight.stride_c + r * params.weight.stride_h + s * params.weight.stride_w;
    const int at = weights + (c * params.taps + tap) * params.weight_pitch;
#pragma unroll 8
    for (int k = warp; k < params.block_filters; k += warps) {
      shared.arena.store(at + k,
                         to_accumulator(load_global_if(k < filters, source + k * params.weight.stride_n)));
    }
  }
}

// sums[pixel][filter] += pixel * weight, for one tap.
__device__ inline void multiply_tap(const Shared& shared, int weight, const float (&pixels)[kPixels],
                                    float (&sums)[kPixels][kPooledFilters]) {
#pragma unroll
  for (int u = 0; u < kPooledFilters; u += 4) {
    const Vector<float, 4> filters = shared.arena.load_vector<4>(weight + u);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) sums[p][u + v] += pixels[p] * filters[v];
    }
  }
}

// One channel, any kernel. `pixel` is where the window's first pixel sees tap 0.
__device__ inline void multiply_channel(const Shared& shared, const PooledParams& params, int pixel,
                                        int weight, float (&sums)[kPixels][kPooledFilters]) {
  const int down = params.stride_h * params.pitch;
  const int kernel_w = params.kernel_w.divisor();
  for (int first = 0; first < params.taps; first += kernel_w, pixel += params.dilation_h * params.pitch) {
#pragma unroll 2
    for (int s = 0; s < kernel_w; ++s, weight += params.weight_pitch) {
      const int at = pixel + s * params.dilation_w;
      const float pixels[kPixels] = {shared.arena.load(at), shared.arena.load(at + params.stride_w),
                                     shared.arena.load(at + down),
                                     shared.arena.load(at + down + params.stride_w)};
      multiply_tap(shared, weight, pixels, sums);
    }
  }
}

// One channel of a 3 x 3 kernel, stride and dilation 1: the window sees 4 x 4 pixels, read once.
__device__ inline void multiply_channel_3x3(const Shared& shared, const PooledParams& params, int pixel,
                                            int weight, float (&sums)[kPixels][kPooledFilters]) {
  float patch[4][4];
#pragma unroll
  for (int row = 0; row < 4; ++row) {
#pragma unroll
    for (int column = 0; column < 4; column += 2) {
      const Vector<float, 2> pair = shared.arena.load_vector<2>(pixel + row * params.pitch + column);
      patch[row][column] = pair[0];
      patch[row][column + 1] = pair[1];
    }
  }
#pragma unroll
  for (int r = 0; r < 3; ++r) {
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      const float pixels[kPixels] = {patch[r][s], patch[r][s + 1], patch[r + 1][s], patch[r + 1][s + 1]};
      multiply_tap(shared, weight + (r * 3 + s) * params.weight_pitch, pixels, sums);
    }
  }
}

// The slices' sums, added in order by the first slice's threads.
__device__ inline void add_slices(Shared& shared, const PooledParams& params, int slice, int thread,
                                  float (&sums)[kPixels][kPooledFilters]) {
  constexpr int kSums = kPixels * kPooledFilters;
  __syncthreads();
  if (slice > 0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      shared.arena.store(((slice - 1) * kSums + i) * params.slice_threads + thread,
                         sums[i / kPooledFilters][i % kPooledFilters]);
    }
  }
  __syncthreads();
  if (slice > 0) return;
  for (int other = 0; other < params.slices - 1; ++other) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i / kPooledFilters][i % kPooledFilters] +=
          shared.arena.load((other * kSums + i) * params.slice_threads + thread);
    }
  }
}

// One window's results for kPooledFilters filters from `filter` on.
template <class T>
__device__ inline void store_window(const PooledParams& params, int row, int column, int filter,
                                    const float (&sums)[kPixels][kPooledFilters]) {
  int i;
  const int n = params.image_rows.divide(row, i);
  const auto element = [&](const TensorView& view) {
    return n * view.stride_n + i * view.stride_h + column * view.stride_w + filter * view.stride_c;
  };
  T* const output = static_cast<T*>(params.output.data) + element(params.output);
  uint8_t* const offsets = params.offsets.data == nullptr
                               ? nullptr
                               : static_cast<uint8_t*>(params.offsets.data) + element(params.offsets);
  Vector<T, kPooledFilters> best;
  Vector<uint8_t, kPooledFilters> best_offset;
#pragma unroll
  for (int u = 0; u < kPooledFilters; ++u) {
    const float bias = filter + u < params.filters ? load_bias<T>(params.epilogue, filter + u) : 0.0f;
    const float pixels[kPixels] = {sums[0][u], sums[1][u], sums[2][u], sums[3][u]};
    pool<T>(params, pixels, bias, best[u], best_offset[u]);
  }
  if (params.vector_store) {
    store_global<kPooledFilters>(output, best);
    if (offsets != nullptr) store_global<kPooledFilters>(offsets, best_offset);
    return;
  }
#pragma unroll
  for (int u = 0; u < kPooledFilters; ++u) {
    if (filter + u >= params.filters) return;
    store_global(output + u * params.output.stride_c, best[u]);
    if (offsets != nullptr) store_global(offsets + u * params.offsets.stride_c, best_offset[u]);
  }
}

template <class T, bool ThreeByThree>
__global__ void __launch_bounds__(kPooledThreads, 3) fma_kernel(const __grid_constant__ PooledParams params) {
  Shared& shared = shared_memory<Shared>();
  const int slice = threadIdx.x / params.slice_threads;
  const int thread = threadIdx.x - slice * params.slice_threads;
  const int slot = thread >> params.filter_bits;
  const int block_filter = (thread & (params.filter_threads - 1)) * kPooledFilters;

  const BlockTiles tiles(params);
  const int first_filter = tiles.filter_tile * params.block_filters;

  // A slot past the tile computes the tile's first window and stores nothing.
  int tile_column;
  const int tile_row = params.tile_column_div.divide(slot, tile_column);
  const bool in_tile = tile_row < params.tile_rows;
  const int seen =
      in_tile ? tile_row * params.box_rows * params.pitch + tile_column * kPooledWindow * params.stride_w : 0;
  const int weights = params.chunk * params.plane + block_filter;

  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    const TileStart start(params, tile);
    float sums[kPixels][kPooledFilters] = {};
    for (int first = 0; first < params.channels; first += params.chunk) {
      const int count = min(params.chunk, params.channels - first);
      __syncthreads();
      if (tile == tiles.first) bring_weights<T>(shared, params, first_filter, first, count);
      bring_box<T>(shared, params, start, first, count);
      __syncthreads();
#pragma unroll 1
      for (int c = slice; c < count; c += params.slices) {
        const int pixel = seen + c * params.plane;
        const int weight = weights + c * params.taps * params.weight_pitch;
        if constexpr (ThreeByThree) {
          multiply_channel_3x3(shared, params, pixel, weight, sums);
        } else {
          multiply_channel(shared, params, pixel, weight, sums);
        }
      }
    }
    if (params.slices > 1) add_slices(shared, params, slice, thread, sums);
    const int row = start.row + tile_row, column = start.column + tile_column;
    const int filter = first_filter + block_filter;
    if (slice == 0 && in_tile && row < params.rows && column < params.columns && filter < params.filters) {
      store_window<T>(params, row, column, filter, sums);
    }
  }
}

template <class T>
void launch_fma(const PooledPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  static_assert(sizeof(Shared) == kPooledArena * sizeof(float));
  launch("conv2d::pooled_fprop", plan.three_by_three ? fma_kernel<T, true> : fma_kernel<T, false>, config,
         plan.params);
}

}  // namespace fastcnn::pooled
