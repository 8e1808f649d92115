// Few output channels (K * R * S <= 80, K <= 8) of many input channels, NHWC at stride 1, in half precision
// on tensor cores: fprop of last layers, and dgrad of first layers, where dy takes x's place.
//
// Walk: a block holds the weights in the order of mma's fragments and walks tiles of output pixels. A warp
// takes 32 pixels (16 with 80 columns) of the tile's box, halo included, at a time and multiplies them with
// the weights of every tap at once: columns are (tap, filter). Fragments of pixels come straight from memory:
// a lane's 16 bytes are 8 channels, which may stand in any order of reduction. The products go to shared
// memory, [column][pixel]; then a thread adds one output's R*S of them, each from the pixel that its tap
// sees, in fixed order. Channels past the last are zeros in both operands.
// Floor: bytes of x once, 2*N*P*Q*K*C*R*S flops. Waste: columns are padded to 16, 32, 40 or 80; x is read
// 1 + halo times. Memory bounds it: at C = 64, 3x3, K = 3 16 pixels are 2 KB, and 16 products on tensor
// cores. Registers (ptxas, the most of sm_80 and sm_90a): 91, 105, 116 and 122: two blocks an SM. Why: the
// generic kernel multiplies 128 x 32 results on FMA units, of which K columns are wanted, and brings x once a
// tap.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "common/launch.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/thin_box.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::thin {

// 16-pixel tiles of a warp at a time: 80 columns leave registers to one.
template <int Octets>
inline constexpr int kOutputTiles = Octets > 5 ? 1 : 2;

template <class T>
struct OutputMmaShared {
  SharedArray<T, kThinOutputWeights> weights;
  SharedArray<float, (kThinArenaBytes - kThinOutputWeights * 2) / 4> products;  // [column][pixel of the box]
};

// The gradient past its activation, out of line as in thin_wgrad_tile.cuh.
template <class T>
[[gnu::noinline]] __device__ Vector<T, 8> load_activated_pixel(const GradActivation& activation,
                                                               const T* data, int64_t offset) {
  return load_grad_if<8>(true, activation, data, offset);
}

template <class T, int Octets>
__global__ __launch_bounds__(kThinThreads,
                             2) void output_mma_kernel(const __grid_constant__ ThinOutputParams params) {
  auto& shared = shared_memory<OutputMmaShared<T>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  constexpr int kTiles = kOutputTiles<Octets>;
  const int weights = params.steps * 2 * Octets * 128;
  for (int at = threadIdx.x * 8; at < weights; at += blockDim.x * 8) {
    shared.weights.template store_vector<8>(at, Vector<T, 8>{});
  }
  __syncthreads();
  for (int index = threadIdx.x; index < params.channels * params.columns; index += blockDim.x) {
    int c, k, s;
    const int column = params.channel_div.divide(index, c);
    const int tap = params.filter_div.divide(column, k);
    const int r = params.s_div.divide(tap, s);
    // 8 neighbouring channels are a lane's, 4 of them for each of two steps.
    const int place =
        (((c / 32 * 2 + c % 8 / 4) * Octets + column / 8) * 32 + column % 8 * 4 + c % 32 / 8) * 4 + c % 4;
    shared.weights.store(
        place, load_global(static_cast<const T*>(params.weight.data) + k * params.weight_out +
                           c * params.weight_in + r * params.weight.stride_h + s * params.weight.stride_w));
  }

  const T* const input = static_cast<const T*>(params.input.data);
  const int first_tile = static_cast<int>(blockIdx.x) * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    int tile_h, tile_w;
    const int image = params.tiles_h.divide(params.tiles_w.divide(tile, tile_w), tile_h);
    const int row = tile_h * params.tile_h, column = tile_w * params.tile_w;
    __syncthreads();
    for (int first = warp * kTiles * 16; first < params.positions; first += kThinThreads / 2 * kTiles) {
      int64_t offset[kTiles][2];
      bool inside[kTiles][2];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int box_w;
          const int box_h = params.box_columns.divide(first + m * 16 + half * 8 + g, box_w);
          const int h = params.first_h + row + box_h, w = params.first_w + column + box_w;
          inside[m][half] = box_h < params.box_h &&
                            static_cast<unsigned>(h) < static_cast<unsigned>(params.image_h) &&
                            static_cast<unsigned>(w) < static_cast<unsigned>(params.image_w);
          offset[m][half] =
              image * params.input.stride_n + h * params.input.stride_h + w * params.input.stride_w + t * 8;
        }
      }
      float sums[kTiles][Octets][4] = {};
      for (int step = 0; step < params.steps; ++step) {
        uint32_t x[kTiles][2][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const bool exists = inside[m][half] && step * 32 + t * 8 < params.channels;
            const int64_t at = offset[m][half] + step * 32;
            const Vector<T, 8> values = params.activation.saved != nullptr && exists
                                            ? load_activated_pixel(params.activation, input, at)
                                            : load_global_if<8>(exists, input + at);
            memcpy(x[m][half], &values, sizeof(values));
          }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int n = 0; n < Octets; ++n) {
            const auto fragment =
                shared.weights.template load_vector<4>((((step * 2 + j) * Octets + n) * 32 + lane) * 4);
            uint32_t b[2];
            memcpy(b, &fragment, sizeof(b));
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              const uint32_t a[4] = {x[m][0][j * 2], x[m][1][j * 2], x[m][0][j * 2 + 1], x[m][1][j * 2 + 1]};
              ptx::mma_m16n8k16<T>(sums[m][n], a, b, sums[m][n]);
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int i = 0; i < Octets * 4; ++i) {
          const int product = i / 4 * 8 + t * 2 + i % 2;
          if (product < params.columns) {
            shared.products.store(product * params.pitch + first + m * 16 + i % 4 / 2 * 8 + g,
                                  sums[m][i / 4][i % 4]);
          }
        }
      }
    }
    __syncthreads();

    const int outputs = params.tile_h * params.tile_w * params.filters;
    for (int index = threadIdx.x; index < outputs; index += blockDim.x) {
      int k, w;
      const int h = params.tile_columns.divide(params.filter_div.divide(index, k), w);
      if (row + h >= params.out_h || column + w >= params.out_w) continue;
      float sum[1] = {};
      for (int r = 0; r < params.r; ++r) {
        for (int s = 0; s < params.s; ++s) {
          const int seen =
              (h + (params.flipped ? params.r - 1 - r : r) * params.row_step) * params.box_columns.divisor() +
              w + (params.flipped ? params.s - 1 - s : s) * params.column_step;
          sum[0] += shared.products.load(((r * params.s + s) * params.filters + k) * params.pitch + seen);
        }
      }
      const float bias[1] = {load_bias<T>(params.epilogue, k)};
      const int64_t at = image * params.output.stride_n + k * params.output.stride_c +
                         (row + h) * params.output.stride_h + (column + w) * params.output.stride_w;
      store_global<1>(static_cast<T*>(params.output.data) + at, finish<T>(params.epilogue, sum, bias, at));
    }
  }
}

template <class T>
void launch_output_mma(const ThinOutputParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(OutputMmaShared<T>);
  config.stream = stream;
  const auto kernel = plan.unit_octets == 2   ? output_mma_kernel<T, 2>
                      : plan.unit_octets == 4 ? output_mma_kernel<T, 4>
                      : plan.unit_octets == 5 ? output_mma_kernel<T, 5>
                                              : output_mma_kernel<T, 10>;
  launch(params.flipped ? "conv2d::thin_dgrad_mma" : "conv2d::thin_fprop_output_mma", kernel, config, params);
}

}  // namespace fastcnn::thin
