// Few output channels (K <= 8) in half precision, NHWC, on tensor cores, where thin_output_mma.cuh does not
// go: windows of more taps, strides of fprop, any number of reduced channels. fprop of last layers, and dgrad
// of first layers at stride 1, where dy takes x's place.
//
// Walk: a block makes a tile of output pixels in stages of 16 to 64 channels: the box of x that the tile
// sees, halo included, and these channels' weights, which come (cp.async, two buffers) while the stage before
// is multiplied. A position is a pixel of the box in a row where a window begins. A warp multiplies up to 64
// positions with up to 5 octets of columns (s, filter), and sums over channels and rows of taps in registers:
// a row of taps is another row of the box for all. At last the products go to shared memory,
// [column][position], over the stages, and a thread adds one output's S of them, each from the position that
// its tap sees, in fixed order. Both operands lie in planes of 8 channels, 16 bytes a pixel (a column), where
// ldmatrix finds 8 neighbours in different banks. Where the columns are more than a warp's, 2 or 4 warps
// share positions. Channels past the last are zeros in both operands.
// Floor: bytes of x once, 2*N*P*Q*K*C*R*S flops. Waste: columns are padded to 24, 32 or 40 (times 2 or 4),
// positions are 1 + halo of a row's outputs times the stride; x is read 1 + halo times, mostly from L2. At
// C = 64, 9x9, K = 3 tensor cores bound it: 13 x 30 pixels (13 x 38 positions) take 11.4 products of
// 16 x 8 x 16 a pixel, of which 7.6 are wanted, and 262 bytes. A row of taps costs a warp 24 wavefronts of
// shared memory for 16 products.
// Registers (ptxas, the most of sm_80 and sm_90a; 3, 4, 5 octets): 106, 123, 117, nothing spilled: two blocks
// an SM, for which an A100 has the shared memory, too.
// Why: with (tap, filter) as columns, as thin_output_mma.cuh has it, 243 products of each pixel of the box
// would go through shared memory instead of 27 of each position. The generic kernel multiplies 128 x 32
// results on FMA units, of which K columns are wanted, and brings x once a tap.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/thin.h"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::thin {

inline constexpr int kRowsStage = kThinRowsStageBytes / 2;  // elements

template <class T>
struct OutputRowsShared {
  // Of each the box, [plane][row][column][8], and behind it the weights, [plane][row of taps][column][8].
  SharedArray<T, 2 * kRowsStage> stages;
};
struct OutputRowsProducts {
  SharedArray<float, 2 * kThinRowsStageBytes / 4> products;
};

// The image and the first pixel of the block's tile.
struct RowsTile {
  int image, row, column;

  __device__ explicit RowsTile(const ThinOutputRowsParams& params) {
    int h, w;
    image = params.tiles_h.divide(params.tiles_w.divide(static_cast<int>(blockIdx.x), w), h);
    row = h * params.tile_h;
    column = w * params.tile_w;
  }
};

// 8 channels of a pixel, of which `left` exist, past the activation's backward. Out of line: few need it.
template <class T>
[[gnu::noinline]] __device__ Vector<T, 8> load_pixel(const ThinOutputRowsParams& params, int64_t offset,
                                                     int left) {
  const auto load = [&](const void* data) {
    const T* const pixel = static_cast<const T*>(data) + offset;
    if (params.vectors) return load_global_if<8>(left > 0, pixel);
    Vector<T, 8> values;
#pragma unroll
    for (int v = 0; v < 8; ++v) values[v] = load_global_if(v < left, pixel + v);
    return values;
  };
  const Vector<T, 8> values = load(params.x.view.data);
  if (params.activation.saved == nullptr) return values;
  return through_activation(params.activation, values, load(params.activation.saved));
}

// The stage's planes of the box, zeros outside the image and past the last channel.
template <class T>
__device__ inline void bring_stage_pixels(OutputRowsShared<T>& shared, int start,
                                          const ThinOutputRowsParams& params, int first_channel) {
  const ThinBox& box = params.x;
  const RowsTile tile(params);
  const int64_t image = tile.image * box.view.stride_n;
  const int first_row = params.first_h + tile.row * params.step_h;
  const int first_column = params.first_w + tile.column * params.step_w;
  const int items = box.planes * box.rows * box.columns;
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int plane, column;
    const int row = params.box_columns.divide(params.plane_div.divide(item, plane), column);
    const int h = first_row + row, w = first_column + column, c = first_channel + plane * 8;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(box.image_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(box.image_w);
    const int left = inside ? params.channels - c : 0;
    const int at = start + plane * box.plane_pitch + row * box.row_pitch + column * 8;
    const int64_t offset = image + c + h * box.view.stride_h + w * box.view.stride_w;
    if (params.vectors && params.activation.saved == nullptr) {
      const T* const data = static_cast<const T*>(box.view.data);
      ptx::cp_async<16>(shared.stages.address(at), data + (left > 0 ? offset : 0), left > 0);
    } else {
      shared.stages.template store_vector<8>(at, load_pixel<T>(params, offset, left));
    }
  }
}

// The weights of the stage's channels, taps in the order in which the box has them; zeros past the last
// channel and column.
template <class T>
__device__ inline void bring_rows_weights(OutputRowsShared<T>& shared, int start,
                                          const ThinOutputRowsParams& params, int first_channel) {
  const T* const data = static_cast<const T*>(params.weight.data);
  const int items = params.x.planes * params.r * params.column_div.divisor();
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int plane, column, k;
    const int place = params.plane_div.divide(item, plane);
    int r = params.column_div.divide(place, column);
    int s = params.filter_div.divide(column, k);
    const int c = first_channel + plane * 8;
    const int left = s < params.s ? params.channels - c : 0;
    if (params.flipped) {
      r = params.r - 1 - r;
      s = params.s - 1 - s;
    }
    const int64_t offset = k * params.weight_out + c * params.weight_in + r * params.weight.stride_h +
                           s * params.weight.stride_w;
    const int at = start + plane * params.weight_pitch + place * 8;
    if (params.weight_vectors) {
      ptx::cp_async<16>(shared.stages.address(at), data + (left > 0 ? offset : 0), left > 0);
      continue;
    }
    Vector<T, 8> values;
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      values[v] = load_global_if(v < left, data + offset + v * params.weight_in);
    }
    shared.stages.template store_vector<8>(at, values);
  }
}

// Octets of columns of a warp.
template <class T, int Octets>
__global__ __launch_bounds__(kThinThreads,
                             2) void output_rows_kernel(const __grid_constant__ ThinOutputRowsParams params) {
  auto& shared = shared_memory<OutputRowsShared<T>>();
  constexpr int kTiles = thin_rows_tiles(Octets);
  // Columns by pitch, at most 4 more than the most positions, of 1 to 4 groups of warps.
  static_assert(Octets * 8 * (kTiles * kThinThreads / 2 + 4 * 4) * 4 <= 2 * kThinRowsStageBytes);
  const int lane = threadIdx.x % 32;
  int part;
  const int first_column = params.warp_parts.divide(static_cast<int>(threadIdx.x) / 32, part) * Octets * 8;
  const int parts = params.warp_parts.divisor();
  const int tiles = params.warp_parts.divide((params.positions + 15) / 16 + parts - 1 - part);

  const auto bring = [&](int stage) {
    const int start = stage % 2 * kRowsStage, channel = stage * params.x.planes * 8;
    bring_stage_pixels(shared, start, params, channel);
    bring_rows_weights(shared, start + params.weight_start, params, channel);
    ptx::cp_async_commit();
  };

  // Where ldmatrix finds the lane's row: of each 16 positions the first plane's, then the second's; of each
  // two octets of columns first plane and second plane of one, then of the other.
  int seen[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int position = (m * parts + part) * 16 + lane % 16;
    int w;
    const int h = params.box_columns.divide(position < params.positions ? position : 0, w);
    seen[m] = h * params.step_h * params.x.row_pitch + w * 8 + lane / 16 * params.x.plane_pitch;
  }
  const int weight = params.weight_start + lane / 8 % 2 * params.weight_pitch + (first_column + lane % 8) * 8;

  float sums[kTiles][Octets][4] = {};
  const int stages = params.stages.divisor();
  bring(0);
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (stage + 1 < stages) bring(stage + 1);
    const int start = stage % 2 * kRowsStage;
    const int last_step = min(params.x.planes / 2, (params.channels - stage * params.x.planes * 8 + 15) / 16);
#pragma unroll 1
    for (int step = 0; step < last_step; ++step) {
      int pixels = start + step * 2 * params.x.plane_pitch;
      int weights = start + step * 2 * params.weight_pitch + weight;
#pragma unroll 1
      for (int r = 0; r < params.r; ++r) {
        uint32_t b[Octets][2];
#pragma unroll
        for (int n = 0; n + 1 < Octets; n += 2) {
          uint32_t both[4];
          ptx::ldmatrix_x4(both, shared.stages.address(weights + n * 64 + lane / 16 * 64));
          b[n][0] = both[0], b[n][1] = both[1], b[n + 1][0] = both[2], b[n + 1][1] = both[3];
        }
        if (Octets % 2 == 1) {
          ptx::ldmatrix_x2(b[Octets - 1], shared.stages.address(weights + (Octets - 1) * 64));
        }
#pragma unroll
        for (int m = 0; m < kTiles; m += 2) {
          if (m >= tiles) break;
          uint32_t a[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (m + i < kTiles) ptx::ldmatrix_x4(a[i], shared.stages.address(pixels + seen[m + i]));
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int n = 0; n < Octets; ++n) {
              if (m + i < kTiles) ptx::mma_m16n8k16<T>(sums[m + i][n], a[i], b[n], sums[m + i][n]);
            }
          }
        }
        pixels += params.row_step * params.x.row_pitch;
        weights += params.column_div.divisor() * 8;
      }
    }
  }

  __syncthreads();
  auto& products = shared_memory<OutputRowsProducts>().products;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int position = (m * parts + part) * 16 + lane / 4;
    if (m >= tiles) break;
#pragma unroll
    for (int i = 0; i < Octets * 4; ++i) {
      const int product = first_column + i / 4 * 8 + lane % 4 * 2 + i % 2;
      products.store(product * params.pitch + position + i % 4 / 2 * 8, sums[m][i / 4][i % 4]);
    }
  }
  __syncthreads();

  const RowsTile tile(params);
  const int outputs = params.tile_h * params.tile_w * params.filters;
  for (int index = threadIdx.x; index < outputs; index += blockDim.x) {
    int k, w;
    const int h = params.tile_columns.divide(params.filter_div.divide(index, k), w);
    if (tile.row + h >= params.out_h || tile.column + w >= params.out_w) continue;
    int at = k * params.pitch + h * params.box_columns.divisor() + w * params.step_w;
    float sum[1] = {};
    for (int s = 0; s < params.s; ++s) {
      sum[0] += products.load(at);
      at += params.filters * params.pitch + params.column_step;
    }
    const float bias[1] = {load_bias<T>(params.epilogue, k)};
    const int64_t offset = tile.image * params.output.stride_n + k * params.output.stride_c +
                           (tile.row + h) * params.output.stride_h +
                           (tile.column + w) * params.output.stride_w;
    store_global<1>(static_cast<T*>(params.output.data) + offset,
                    finish<T>(params.epilogue, sum, bias, offset));
  }
}

template <class T>
void launch_output_rows(const ThinOutputRowsParams& params, const ThinPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(OutputRowsShared<T>);
  config.stream = stream;
  const auto kernel = plan.unit_octets == 3   ? output_rows_kernel<T, 3>
                      : plan.unit_octets == 4 ? output_rows_kernel<T, 4>
                                              : output_rows_kernel<T, 5>;
  launch(params.flipped ? "conv2d::thin_dgrad_rows" : "conv2d::thin_fprop_output_rows", kernel, config,
         params);
}

}  // namespace fastcnn::thin
