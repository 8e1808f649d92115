// fprop and dgrad of a grouped convolution on FMA units.
//
// Walk: a block holds the weights of one slab of groups and walks `tiles_per_block` tiles of output pixels;
// of each it brings the box of pixels that the tile sees to shared memory (grouped_box.cuh). A warp owns
// KO filters of one group and 128 pixels, a thread 4 pixels, 32 apart, so that the warp's weight reads are
// broadcasts. dgrad walks its pixels by phases of the stride inside the tile: dy comes once for all of
// them, and each phase multiplies only the taps that reach it.
// Floor: bytes of the three tensors once; 2*N*P*Q*K*(C/g)*R*S flops at the FMA rate. At 3x3 and 4 bytes an
// element, C/g = 4 is bound by memory, C/g = 8 by both, more by FMA. Per byte: the input is read 1 + halo
// times, 1.2 to 1.4 at 3x3; the weights once a block. Waste: none
// in products but for the overhang of a tile. A step of 4 channels costs a thread 4 pixel vectors (4 shared
// wavefronts a warp each) and KO broadcasts for 16 * KO products: bound by FMA at KO = 8, by shared memory
// and FMA alike at KO = 4, which only K/g = 4, 12, 20, 28 take.
// Registers (ptxas, float; sm_80, sm_90a): 79, 80 at KO = 4, three blocks an SM; 121, 128 at KO = 8, two.
// Half precision comes here only where image_mma_kernel's tables or weights do not fit.
// Why: the generic kernel multiplies 32 columns for a group's K/g filters and gathers x for each tap anew.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grouped_box.cuh"
#include "conv2d/grouped_tile.cuh"

namespace fastcnn::grouped {

inline constexpr int kWarpPixels = 128;
inline constexpr int kThreadPixels = kWarpPixels / 32;

// 8 filters a thread need more registers than three blocks an SM leave.
template <int KO>
inline constexpr int kImageBlocksPerSm = KO == 4 ? 3 : 2;

template <class T>
struct ImageShared {
  SharedArray<T, kArena<T>> arena;  // the box, behind it the weights
};

// Weights of the slab at tap rows [first, last) of axis_h: [filter block][row - first][column][channel][KO].
template <class T, bool Dgrad, int KO, int N>
__device__ inline void bring_weights(SharedArray<T, N>& arena, int arena_start,
                                     const GroupedImageParams& params, int slab, int first, int last) {
  const int group_filters = Dgrad ? params.group_in : params.group_out;
  const int group_channels = Dgrad ? params.group_out : params.group_in;
  const int count =
      params.slab_groups * group_filters * group_channels * params.weight_rows * params.axis_w.taps;
  const T* const data = static_cast<const T*>(params.weight.data);
#pragma unroll 4
  for (int index = threadIdx.x; index < count; index += blockDim.x) {
    int c, k, a, b;
    int rest;
    if (params.weight_channels_inner) {
      rest = params.weight_r.divide(params.weight_s.divide(params.weight_c.divide(index, c), b), a);
    } else {
      rest = params.weight_c.divide(params.weight_r.divide(params.weight_s.divide(index, b), a), c);
    }
    const int slab_group = params.weight_k.divide(rest, k);
    const int group = slab * params.slab_groups + slab_group;
    if (first + a >= last) continue;
    const int64_t offset = (static_cast<int64_t>(group) * group_filters + k) * params.weight.stride_n +
                           c * params.weight.stride_c +
                           params.axis_h.tap[first + a] * params.weight.stride_h +
                           params.axis_w.tap[b] * params.weight.stride_w;
    const int in = Dgrad ? k : c;
    const int out = slab_group * params.group_out + (Dgrad ? c : k);
    const int at = (((out / KO) * params.weight_rows + a) * params.axis_w.taps + b) * params.group_in + in;
    arena.store(arena_start + at * KO + out % KO, load_global_if(group < params.groups, data + offset));
  }
}

template <class T, bool Dgrad, int KO>
__global__ __launch_bounds__(kGroupedThreads, kImageBlocksPerSm<KO>) void image_kernel(
    const __grid_constant__ GroupedImageParams params) {
  auto& arena = shared_memory<ImageShared<T>>().arena;
  int slab;
  const int chunk = params.slabs.divide(static_cast<int>(blockIdx.x), slab);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int filter_block = warp % params.filter_blocks;
  const int first_slot = warp / params.filter_blocks * kWarpPixels + lane;
  const int in_channel = filter_block * KO / params.group_out * params.group_in;
  const int out_channel = slab * params.slab_out + filter_block * KO;
  const int weights = params.box.pixels.divisor() * params.box.pitch;
  const int filter_weights = params.weight_rows * params.axis_w.taps * params.group_in * KO;
  const bool resident = params.weight_rows >= params.axis_h.taps;

  // Where each pixel of this thread sees tap 0 of the box; a slot past the tile sees some pixel of it.
  int seen[kThreadPixels];
#pragma unroll
  for (int i = 0; i < kThreadPixels; ++i) {
    const Slot slot = slot_at(params, first_slot + i * 32);
    seen[i] = !slot.valid ? in_channel
                          : ((slot.n * params.box.rows + slot.h * params.pixel_rows) * params.box.columns +
                             slot.w * params.pixel_columns) *
                                    params.box.pitch +
                                in_channel;
  }

  if (resident) bring_weights<T, Dgrad, KO>(arena, weights, params, slab, 0, params.axis_h.taps);
  float bias[KO];
#pragma unroll
  for (int u = 0; u < KO; ++u) {
    bias[u] =
        !Dgrad && out_channel < params.channels_out ? load_bias<T>(params.epilogue, out_channel + u) : 0.0f;
  }

  const int first_tile = chunk * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const TilePosition position = tile_at(params, tile);
    __syncthreads();
    bring_box<Dgrad>(arena, 0, params.box, slab, position.image, position.box_h, position.box_w);
    __syncthreads();
    for (int phase_h = 0; phase_h < params.axis_h.phases; ++phase_h) {
      for (int phase_w = 0; phase_w < params.axis_w.phases; ++phase_w) {
        float sums[kThreadPixels][KO] = {};
        const int last_row = params.axis_h.start[phase_h + 1];
        for (int row0 = params.axis_h.start[phase_h]; row0 < last_row; row0 += params.weight_rows) {
          const int row1 = min(row0 + params.weight_rows, last_row);
          if (!resident) {
            __syncthreads();
            bring_weights<T, Dgrad, KO>(arena, weights, params, slab, row0, row1);
            __syncthreads();
          }
          for (int row = row0; row < row1; ++row) {
            for (int column = params.axis_w.start[phase_w]; column < params.axis_w.start[phase_w + 1];
                 ++column) {
              const int tap =
                  (params.axis_h.offset[row] * params.box.columns + params.axis_w.offset[column]) *
                  params.box.pitch;
              const int weight_row = resident ? row : row - row0;
              const int weight = weights + filter_block * filter_weights +
                                 (weight_row * params.axis_w.taps + column) * params.group_in * KO;
#pragma unroll 1
              for (int c = 0; c < params.group_in; c += 4) {
                Vector<T, 4> pixels[kThreadPixels];
#pragma unroll
                for (int i = 0; i < kThreadPixels; ++i) {
                  pixels[i] = arena.template load_vector<4>(seen[i] + tap + c);
                }
#pragma unroll
                for (int v = 0; v < 4; ++v) {
                  float filters[KO];
#pragma unroll
                  for (int u = 0; u < KO; u += 4) {
                    const auto part = arena.template load_vector<4>(weight + (c + v) * KO + u);
#pragma unroll
                    for (int j = 0; j < 4; ++j) filters[u + j] = to_accumulator(part[j]);
                  }
#pragma unroll
                  for (int i = 0; i < kThreadPixels; ++i) {
                    const float pixel = to_accumulator(pixels[i][v]);
#pragma unroll
                    for (int u = 0; u < KO; ++u) sums[i][u] += pixel * filters[u];
                  }
                }
              }
            }
          }
        }

        if (out_channel >= params.channels_out) continue;
#pragma unroll
        for (int i = 0; i < kThreadPixels; ++i) {
          const Slot slot = slot_at(params, first_slot + i * 32);
          const int n = position.image + slot.n;
          const int h = (position.row + slot.h) * params.axis_h.phases + phase_h;
          const int w = (position.column + slot.w) * params.axis_w.phases + phase_w;
          if (!slot.valid || n >= params.image_n || h >= params.out_h || w >= params.out_w) continue;
          const int64_t offset = n * params.output.stride_n + h * params.output.stride_h +
                                 w * params.output.stride_w + out_channel * params.output.stride_c;
          T* const output = static_cast<T*>(params.output.data);
          const Epilogue epilogue = Dgrad ? Epilogue{} : params.epilogue;
          if (params.vector_store) {
            constexpr int V = KO < kVector<T> ? KO : kVector<T>;
#pragma unroll
            for (int u = 0; u < KO; u += V) {
              float run[V], run_bias[V];
#pragma unroll
              for (int v = 0; v < V; ++v) {
                run[v] = sums[i][u + v];
                run_bias[v] = bias[u + v];
              }
              store_global<V>(output + offset + u, finish<T>(epilogue, run, run_bias, offset + u));
            }
          } else {
#pragma unroll
            for (int u = 0; u < KO; ++u) {
              const float one[1] = {sums[i][u]}, one_bias[1] = {bias[u]};
              const int64_t at = offset + u * params.output.stride_c;
              store_global<1>(output + at, finish<T>(epilogue, one, one_bias, at));
            }
          }
        }
      }
    }
  }
}

template <class T>
void launch_image(const GroupedImageParams& params, bool dgrad, const GroupedPlan& plan,
                  cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(ImageShared<T>);
  config.stream = stream;
  const bool eight = plan.filter_run == 8;
  if (dgrad) {
    launch("conv2d::grouped_dgrad", eight ? image_kernel<T, true, 8> : image_kernel<T, true, 4>, config,
           params);
  } else {
    launch("conv2d::grouped_fprop", eight ? image_kernel<T, false, 8> : image_kernel<T, false, 4>, config,
           params);
  }
}

}  // namespace fastcnn::grouped
