// Convolution, bias, activation and the maximum over 2 x 2 windows (stride 2, no padding, floor mode) in one
// kernel: what it is launched with, plan and launcher. The convolution's own output is never stored.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/chip.h"
#include "common/fastdiv.h"
#include "common/plan_text.h"
#include "conv2d/problem.h"

namespace fastcnn {

inline constexpr int kPooledThreads = 256;      // of a block, at most
inline constexpr int kPooledArena = 11 * 1024;  // floats: the box of pixels and the weights
inline constexpr int kPooledFilters = 8;        // of a thread, beside the four pixels of one window
inline constexpr int kPooledWeightPad = 4;      // floats between the filters of neighbouring taps
inline constexpr int kPooledWindow = 2;         // rows and columns, and their step

// "Row" alone is a row of windows here: (n, i), counted through the batch. A tile is some such rows by
// some columns of windows; each row's pixels lie in shared memory by themselves, since neighbours may be of
// two images.
struct PooledParams {
  TensorView input;
  TensorView weight;
  TensorView output;   // N K I J: the pooled result
  TensorView offsets;  // uint8, likewise: which of 0..3 was the maximum; null data: not kept
  Epilogue epilogue;   // bias and activation
  int channels = 0, filters = 0, taps = 0;
  int image_h = 0, image_w = 0;
  int stride_h = 1, stride_w = 1, pad_top = 0, pad_left = 0, dilation_h = 1, dilation_w = 1;
  int rows = 0, columns = 0;  // N * I, J
  int tile_rows = 1, tile_columns = 1;
  int row_tiles = 1;
  int tiles_per_block = 1;  // 1 unless all channels fit, and so the weights stay
  int box_rows = 0;         // image rows that one row of windows sees
  int pitch = 0;            // floats from image row to image row; on tensor cores, elements of a pixel
  int plane = 0;            // floats of one channel of the tile
  int chunk = 1;            // channels in shared memory at a time
  int slices = 1;           // groups of threads that share a chunk's channels
  int slice_threads = 32;
  int filter_threads = 1;              // neighbours along filters, of a window; a power of two
  int filter_bits = 0;                 // its logarithm
  int block_filters = 0;               // of a block, and
  int weight_pitch = 0;                // the floats from tap to tap
  bool channels_fast = false;          // the input is read 16 bytes of channels at a time
  bool weight_channels_inner = false;  // neighbouring weights in memory are of neighbouring channels
  bool vector_store = false;           // 8 filters of a window as one run
  FastDiv image_rows, column_tiles, filter_tiles;
  FastDiv box_columns, box_row_div, tile_column_div, kernel_w, tap_div, chunk_div;
  FastDiv vectors;  // 16-byte runs of a chunk's channels; 1 where channels come one by one
  // On tensor cores. Columns that differ by the step of windows lie side by side: `column_classes` runs of
  // class_columns pixels.
  FastDiv column_classes, box_pixels, chunk_pairs;
  int class_columns = 0;
  int filter_warps = 1;
};

// On tensor cores.
inline constexpr int kPooledMmaArenaBytes = 68 * 1024;
inline constexpr int kPooledMmaWindows = 16;  // of a warp
inline constexpr int kPooledMmaFilters = 32;  // likewise
inline constexpr int kPooledMmaTaps = 128;    // of both axes

struct PooledPlan {
  bool fused = false;  // else convolution and pool one after the other, for `reason`
  bool tensor_cores = false;
  PooledParams params;
  bool three_by_three = false;  // 3 x 3, stride 1, dilation 1: unrolled
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  std::string tile, reason;
};

// `params` as for fprop, but with the pooled output; problem.p and problem.q are the convolution's own.
PooledPlan plan_pooled(const Conv2dParams& params, const TensorView& offsets, const Chip& chip);

PlanText describe(const PooledPlan& plan);

// Launches a plan that is fused, made for these tensors.
void launch_pooled(const PooledPlan& plan, DType dtype, cudaStream_t stream);

namespace pooled {
// Each element type has a .cu file of its own.
template <class T>
void launch_fma(const PooledPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_mma(const PooledPlan& plan, cudaStream_t stream);
}  // namespace pooled

}  // namespace fastcnn
