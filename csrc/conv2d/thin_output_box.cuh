// Few output channels (K <= 8) of many input channels on FMA units: float32 in any layout, half precision in
// NCHW. fprop of last layers, dgrad of first layers at stride 1.
//
// Walk: a block walks tiles of output pixels and, for each, stages of channels: the box of x that the tile
// sees, halo included, and these channels' weights as floats. While a stage is summed, the next, be it the
// next tile's, is on its way (cp.async, two buffers). A box is planes of one channel, as NCHW has them, or of
// 16 bytes of channels, [plane][row][column][channel], as NHWC has them. A thread makes 4 pixels, one below
// the other, times all filters: neighbouring lanes read neighbouring pixels, weights are the same for all
// lanes. Windows of 3 rows slide: 6 reads of x serve the 4 pixels' 12 taps of a column. On small tiles,
// groups of warps (streams) share the channels, and the first adds the others' sums in order.
// Floor: bytes of x once, 2*N*P*Q*K*C*R*S flops. Waste: filters are padded to 2, 4 or 8, rows to 4; x is read
// 1 + halo times (18 x 34 pixels for 16 x 32). 1x1 is bound by memory; 3x3 with C = 64, K = 3 in float32 has
// 256 bytes and 64 * 9 * 4 products a pixel, which FMA units take somewhat longer for than memory.
// Registers (ptxas, the most of sm_80 and sm_90a; 2, 4, 8 filters): 72, 80, 102, nothing spilled: two blocks
// an SM, whose 72 KB of shared memory three would have room for on an H100. Why: the generic kernel
// multiplies 128 x 32 results, of which K columns are wanted, and brings x once a tap.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/thin_box.cuh"

namespace fastcnn::thin {

template <class T>
inline constexpr int kStage = kThinStageBytes / static_cast<int>(sizeof(T));
inline constexpr int kLaneRows = kThinLaneRows;
inline constexpr int kSlidingTaps = 3;

template <class T>
struct OutputBoxShared {
  SharedArray<T, 2 * kStage<T>> x;
  SharedArray<float, 2 * kThinStageWeights> weights;            // [channel][tap][filter] of a stage
  SharedArray<float, kThinThreads * kThinMostOutputs> partial;  // [filter][thread]
};

// The box plane by plane, I channels (of 16 bytes, or one) at a time, with the activation's backward.
template <int I, class T, int N>
__device__ inline void bring_pixels(SharedArray<T, N>& x, int start, const ThinOutputBoxParams& params,
                                    int64_t origin, int planes, int first_row, int first_column) {
  const ThinBox& box = params.x;
  const T* const data = static_cast<const T*>(box.view.data);
  const int items = box.planes * box.rows * box.columns;
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int plane, row, column;
    if (params.channels_fast) {
      row = params.box_columns.divide(params.plane_div.divide(item, plane), column);
    } else {
      plane = box.row_count.divide(params.box_columns.divide(item, column), row);
    }
    if (plane >= planes) continue;
    const int h = first_row + row, w = first_column + column;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(box.image_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(box.image_w);
    const int at = start + plane * box.plane_pitch + row * box.row_pitch + column * I;
    const int64_t offset =
        origin + plane * (I * box.view.stride_c) + h * box.view.stride_h + w * box.view.stride_w;
    if constexpr (I > 1) {
      if (params.activation.saved == nullptr && inside) {
        ptx::cp_async<16>(x.address(at), data + offset);
        continue;
      }
    }
    x.template store_vector<I>(at, load_grad_if<I>(inside, params.activation, data, offset));
  }
}

// Weights of `channels` channels, taps in the order in which the box has them; zeros for filters past the
// last.
template <int K, class T, int N>
__device__ inline void bring_stage_weights(SharedArray<float, N>& weights, int start,
                                           const ThinOutputBoxParams& params, int first_channel,
                                           int channels) {
  const int taps = params.tap_div.divisor();
  for (int index = threadIdx.x; index < channels * taps * K; index += blockDim.x) {
    const int k = index % K;
    int tap, s;
    const int c = first_channel + params.tap_div.divide(index / K, tap);
    int r = params.s_div.divide(tap, s);
    if (params.flipped) {
      r = params.r - 1 - r;
      s = params.s - 1 - s;
    }
    weights.store(start + index,
                  to_accumulator(load_global_if(
                      k < params.filters, static_cast<const T*>(params.weight.data) + k * params.weight_out +
                                              c * params.weight_in + r * params.weight.stride_h +
                                              s * params.weight.stride_w)));
  }
}

// Not inlined: it would be copied for each of a thread's sums.
template <class T>
[[gnu::noinline]] __device__ void store_output(const ThinOutputBoxParams& params, int k, float value,
                                               int64_t pixel) {
  const float sum[1] = {value}, bias[1] = {load_bias<T>(params.epilogue, k)};
  const int64_t at = pixel + k * params.output.stride_c;
  store_global<1>(static_cast<T*>(params.output.data) + at, finish<T>(params.epilogue, sum, bias, at));
}

// I channels of a plane, K filters, Rows rows of taps that slide; 0: any, read for each pixel.
template <class T, int I, int K, int Rows>
__global__ __launch_bounds__(kThinThreads,
                             2) void output_box_kernel(const __grid_constant__ ThinOutputBoxParams params) {
  auto& shared = shared_memory<OutputBoxShared<T>>();
  const int first_tile = static_cast<int>(blockIdx.x) * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  const int first_step = first_tile * params.stages.divisor();
  const int last_step = last_tile * params.stages.divisor();
  const int taps = params.tap_div.divisor();
  const int stage_channels = params.x.planes * I;
  int slot, lane_column;
  const int stream = params.warp_slots.divide(static_cast<int>(threadIdx.x), slot);
  const int lane_row = params.tile_columns.divide(slot, lane_column) * kLaneRows;
  const bool works = stream < params.streams && slot < params.slots;
  const int seen =
      lane_row * params.step_h * params.x.row_pitch + lane_column * params.step_w * params.x.pixel;
  const int pixel_rows = params.step_h * params.x.row_pitch;

  // Begins to bring a step's stage; gives where its box starts.
  const auto bring = [&](int step) {
    const int buffer = (step - first_step) % 2;
    int stage, tile_h, tile_w;
    const int tile = params.stages.divide(step, stage);
    const int image = params.tiles_h.divide(params.tiles_w.divide(tile, tile_w), tile_h);
    const int first_row = params.first_h + tile_h * params.tile_h * params.step_h;
    const int first_column = params.first_w + tile_w * params.tile_w * params.step_w;
    const int channel = stage * stage_channels;
    const int channels = min(stage_channels, params.channels - channel);
    const int64_t origin = image * params.x.view.stride_n + channel * params.x.view.stride_c;
    int start = buffer * kStage<T>;
    if (I == 1 && params.x.dense) {
      start = copy_box(shared.x, start, params.x, static_cast<const T*>(params.x.view.data) + origin,
                       channels, first_row, first_column);
    } else {
      bring_pixels<I>(shared.x, start, params, origin, channels / I, first_row, first_column);
    }
    ptx::cp_async_commit();
    bring_stage_weights<K, T>(shared.weights, buffer * kThinStageWeights, params, channel, channels);
    return start;
  };

  float sums[kLaneRows][K] = {};
  int next_start = first_step < last_step ? bring(first_step) : 0;
  for (int step = first_step; step < last_step; ++step) {
    const int start = next_start;
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (step + 1 < last_step) next_start = bring(step + 1);
    int stage;
    const int tile = params.stages.divide(step, stage);
    const int planes = min(stage_channels, params.channels - stage * stage_channels) / I;
    const int first_weight = (step - first_step) % 2 * kThinStageWeights;
    if (works) {
      for (int plane = stream; plane < planes; plane += params.streams) {
        const int pixel = start + plane * params.x.plane_pitch + seen;
        const int weight = first_weight + plane * I * taps * K;
        if constexpr (Rows > 0) {
#pragma unroll 1
          for (int s = 0; s < params.s; ++s) {
            Vector<T, I> x[kLaneRows + Rows - 1];
#pragma unroll
            for (int i = 0; i < kLaneRows + Rows - 1; ++i) {
              x[i] = shared.x.template load_vector<I>(pixel + i * params.x.row_pitch +
                                                      s * params.column_step * I);
            }
#pragma unroll
            for (int v = 0; v < I; ++v) {
#pragma unroll
              for (int r = 0; r < Rows; ++r) {
                const auto w =
                    shared.weights.template load_vector<K>(weight + (v * taps + r * params.s + s) * K);
#pragma unroll
                for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
                  for (int k = 0; k < K; ++k) sums[i][k] += to_accumulator(x[i + r][v]) * w[k];
                }
              }
            }
          }
        } else {
          for (int tap = 0; tap < taps; ++tap) {
            int s;
            const int r = params.s_div.divide(tap, s);
            const int at = pixel + r * params.row_step * params.x.row_pitch + s * params.column_step * I;
            Vector<T, I> x[kLaneRows];
#pragma unroll
            for (int i = 0; i < kLaneRows; ++i) {
              x[i] = shared.x.template load_vector<I>(at + i * pixel_rows);
            }
#pragma unroll
            for (int v = 0; v < I; ++v) {
              const auto w = shared.weights.template load_vector<K>(weight + (v * taps + tap) * K);
#pragma unroll
              for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
                for (int k = 0; k < K; ++k) sums[i][k] += to_accumulator(x[i][v]) * w[k];
              }
            }
          }
        }
      }
    }
    if (stage + 1 < params.stages.divisor()) continue;

    if (params.streams > 1) {
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
        if (works && stream > 0) {
#pragma unroll
          for (int k = 0; k < K; ++k) shared.partial.store(k * kThinThreads + threadIdx.x, sums[i][k]);
        }
        __syncthreads();
        if (works && stream == 0) {
          for (int other = 1; other < params.streams; ++other) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
              sums[i][k] +=
                  shared.partial.load(k * kThinThreads + other * params.warp_slots.divisor() + slot);
            }
          }
        }
        __syncthreads();
      }
    }
    int tile_h, tile_w;
    const int image = params.tiles_h.divide(params.tiles_w.divide(tile, tile_w), tile_h);
    const int row = tile_h * params.tile_h + lane_row, column = tile_w * params.tile_w + lane_column;
    const bool stores = works && stream == 0 && column < params.out_w;
    const int64_t first =
        image * params.output.stride_n + row * params.output.stride_h + column * params.output.stride_w;
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (stores && row + i < params.out_h && k < params.filters) {
          store_output<T>(params, k, sums[i][k], first + i * params.output.stride_h);
        }
        sums[i][k] = 0;
      }
    }
  }
}

template <class T, int I, int K>
void launch_output_box_filters(const ThinOutputBoxParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(OutputBoxShared<T>);
  config.stream = stream;
  const auto kernel =
      params.rows_slide ? output_box_kernel<T, I, K, kSlidingTaps> : output_box_kernel<T, I, K, 0>;
  launch(params.flipped ? "conv2d::thin_dgrad" : "conv2d::thin_fprop_output", kernel, config, params);
}

template <class T, int I>
void launch_output_box_planes(const ThinOutputBoxParams& params, const ThinPlan& plan, cudaStream_t stream) {
  switch (thin_output_filters(params.filters)) {
    case 2:
      return launch_output_box_filters<T, I, 2>(params, plan, stream);
    case 4:
      return launch_output_box_filters<T, I, 4>(params, plan, stream);
    default:
      return launch_output_box_filters<T, I, 8>(params, plan, stream);
  }
}

template <class T>
void launch_output_box(const ThinOutputBoxParams& params, const ThinPlan& plan, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    if (params.vectors) return launch_output_box_planes<T, kVector<T>>(params, plan, stream);
  }
  launch_output_box_planes<T, 1>(params, plan, stream);
}

}  // namespace fastcnn::thin
