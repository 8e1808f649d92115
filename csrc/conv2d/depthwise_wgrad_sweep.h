// depthwise wgrad in one sweep over x and dy (depthwise_wgrad_sweep.cuh): what the plan tells the kernels.
#pragma once

#include <cstdint>

#include "common/fastdiv.h"
#include "conv2d/problem.h"

namespace fastcnn {

// Three blocks of this much, and what the system takes of each, fill the 228 KiB of an SM of an H100.
inline constexpr int kSweepArenaBytes = 72 * 1024;
// A warp's worth of threads for each window of taps, or this many, or twice as many, for the only one.
inline constexpr int kSweepThreads = 128;
inline constexpr int kSweepMostWindows = 9;
inline constexpr int kSweepMostThreads = 32 * kSweepMostWindows;
// Kernels larger than a window of taps, and all that are not square, are covered by windows of this size.
inline constexpr int kSweepAnyWindow = 5;

// Output rows that a thread takes at a time; of the row of x that it holds, each sees its own taps. NHWC rows
// are as wide as all of the block's channels: fewer of them fit shared memory.
constexpr int sweep_rows(bool channels_last, int stride) {
  return channels_last ? (stride == 1 ? 4 : 2) : (stride == 1 ? 8 : 4);
}
// Neighbouring channels of a thread.
constexpr int sweep_vector(bool channels_last, int window, bool whole) {
  if (!channels_last) return 1;
  return whole && window < 7 ? 4 : 2;
}

// Blocks on an SM that registers leave room for, where the window is the kernel: 100 sums a thread take more.
constexpr int sweep_blocks(bool channels_last, int window) {
  return channels_last && window > 3 ? 2 : 3;
}

struct DepthwiseSweepParams {
  Conv2dProblem problem;  // without the pixels of x that no tap reads
  TensorView x;
  TensorView dy;
  GradActivation activation;
  TensorView output;
  void* bias_grad = nullptr;
  float* partials = nullptr;  // [split][K R S, K where there is a bias_grad]; null: results go out directly
  int64_t x_elements = 0, dy_elements = 0;  // NCHW: of the whole tensors

  // The grid: chunks of channels, column tiles, groups of windows, splits.
  FastDiv chunks, column_tiles, window_groups;
  int chunk_channels = 0;
  int tile_columns = 0;
  FastDiv window_columns;  // windows that cover S
  int windows = 1;         // that cover R x S
  int block_windows = 1;

  // A block's threads: lanes of V channels, workers that share the pixels, windows.
  int lane_bits = 0, worker_bits = 0;

  // Stages: what is in shared memory at a time.
  FastDiv strips;  // stages that cover an image's rows
  int stages = 0;
  int split_stages = 0;
  int stage_images = 1;
  int stage_rows = 0;  // of dy

  // Items: some rows of one column, `row_step` apart; their taps' rows of x lie `tap_step` apart.
  FastDiv item_columns, item_strips, item_phases;
  int row_step = 1, tap_step = 1;

  // Shared memory, in elements. x is a ring of rows (NHWC) or two buffers (NCHW), dy and saved are two
  // buffers.
  int x_row = 0, x_column = 1;  // from row to row, from column to column
  int x_ring = 0;               // NHWC: its rows
  int x_image = 0;              // NCHW: from image to image
  int dy_row = 0, dy_column = 1, dy_image = 0;
  int dy_start = 0, dy_buffer = 0;
  int saved_start = 0;
};

// Which kernel: its window of taps (0: windows of kSweepAnyWindow), its stride (0: one row at a time).
struct DepthwiseSweep {
  bool chosen = false;
  bool channels_last = true;
  int window = 0;
  int stride = 1;
  DepthwiseSweepParams params;
};

}  // namespace fastcnn
