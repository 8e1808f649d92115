// Depthwise wgrad of filters with many taps (depthwise_wgrad_large.cuh): its plan and parameters.
#pragma once

#include <cuda_runtime.h>

#include <optional>

#include "common/chip.h"
#include "common/plan_text.h"
#include "conv2d/depthwise_image.h"

namespace fastcnn {

inline constexpr int kLargeWgradThreads = 256;
// Three blocks of this much, and what the system takes of each, fill the 228 KiB of an SM of an H100.
inline constexpr int kLargeWgradFloats = 72 * 256;

struct DepthwiseLargeWgradParams {
  TensorView x;
  TensorView dy;
  GradActivation activation;
  TensorView output;
  void* bias_grad = nullptr;
  float* partials = nullptr;  // [split][K R S, K where there is a bias_grad]; null: results go out directly
  // The filter's taps as targets, which see the pixels of x under those of dy.
  DepthwiseAxis rows;
  DepthwiseAxis columns;
  int images = 0, channels = 0;             // N C
  int kernel_rows = 0, kernel_columns = 0;  // R S
  int grad_rows = 0;                        // P
  FastDiv grad_columns;                     // Q
  FastDiv chunks;                           // of block_channels
  // A block's threads, the fastest first: channels, lanes, cells, parts.
  FastDiv block_channels;
  FastDiv lanes;  // take the images of a stage in turn
  FastDiv cells;  // that cover a class of taps
  FastDiv cell_columns;
  int parts = 1, part_rows = 0;  // take a stage's rows of dy
  // Stages: some images, or some rows of dy of one. A split has some of them.
  FastDiv strips;  // that cover P
  int stages = 0;
  int split_stages = 0;
  int stage_images = 1;
  FastDiv stage_rows;
  // Shared memory, in floats: planes [image][channel][row][column] of x and, from dy_start on, of dy.
  FastDiv x_rows, x_columns;  // at most
  int x_pitch = 0, x_plane = 0;
  int dy_start = 0, dy_pitch = 0, dy_plane = 0;
  int floats = 0;
};

struct DepthwiseLargeWgradPlan : PlanText {
  DepthwiseLargeWgradParams params;  // but for the tensors
};

// Nothing where it does not take the problem, or where another kernel is as good: the sweep where that takes
// it, else the window kernel.
std::optional<DepthwiseLargeWgradPlan> plan_depthwise_large_wgrad(const Conv2dParams& params, bool swept,
                                                                  const Chip& chip);

template <class T>
void launch_depthwise_large_wgrad(const DepthwiseLargeWgradParams& params,
                                  const DepthwiseLargeWgradPlan& plan, cudaStream_t stream);

}  // namespace fastcnn
