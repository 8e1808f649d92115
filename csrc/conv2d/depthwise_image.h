// Fast fprop and dgrad of a depthwise convolution with one filter a channel: plan, parameters, launchers.
// Both passes are one problem, `target[m] = sum over taps of source * weight`: source is x, target y in
// fprop; source is dy, target dx in dgrad.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/chip.h"
#include "common/fastdiv.h"
#include "common/plan_text.h"
#include "common/tensor_view.h"
#include "conv2d/problem.h"

namespace fastcnn {

// How targets step through the source, in units of the dilation. kTransposed: dgrad at stride 2, where target
// i meets tap i - 2 * j of source j.
enum class DepthwiseStep : int32_t { kOne, kTwo, kTransposed };

// One axis. Targets whose taps fall on the same sources modulo the dilation form a class, and the classes are
// problems without dilation of their own: target m of class a lies at first + a + classes * m, and source j
// of it at origin + offset(a) + dilation * j. dgrad at a stride that divides the dilation has classes that no
// tap meets: zeros.
struct DepthwiseAxis {
  int source = 0;  // extents
  int target = 0;
  int classes = 1;
  int first = 0;
  int origin = 0;
  int offset_step = 0;
  int offset_shift = 0;
  FastDiv offset_divisor;
  FastDiv dilation;  // between a class's sources

  // Leaves a rest where no tap meets the class.
  __host__ __device__ int offset(int of_class, int& rest) const {
    return offset_divisor.divide(of_class * offset_step + offset_shift, rest);
  }
  int block = 0;  // targets of a class that one block makes
  FastDiv blocks;
  FastDiv by_classes;
};

struct DepthwiseImageParams {
  TensorView source;
  TensorView weight;
  TensorView target;
  Epilogue epilogue;
  GradActivation grad_activation;
  DepthwiseAxis rows;
  DepthwiseAxis columns;
  int channels = 0;
  bool flip = false;  // dgrad at a step of one is fprop with its taps in reverse order
};

// NHWC (depthwise_strip.cuh).
struct DepthwiseStripParams {
  DepthwiseImageParams image;
  int block_channels = 0;
  int teams = 0;         // row groups that a block makes at a time
  int tile_columns = 0;  // source pixels of a row in shared memory
  FastDiv chunks;        // of block_channels
  FastDiv lanes;         // threads side by side along channels
  FastDiv groups;        // and, times these, along columns
  FastDiv vectors;       // 16-byte vectors of block_channels
  FastDiv ring_rows;
};

// Dense NCHW (depthwise_tile.cuh).
struct DepthwiseTileParams {
  DepthwiseImageParams image;
  int planes = 0;
  int block_planes = 0;
  bool by_rows = false;    // a block takes rows of one class, and of them some columns; else a run of rows
  bool dilated = false;    // its threads' rows or columns, or their sources, are not neighbours
  int class_pitch = 0;     // floats from one class of columns of the source to the next in shared memory
  int pitch = 0;           // and from row to row
  FastDiv groups;          // threads that share a class of columns of a row,
  FastDiv row_classes;     // and, times classes of columns, a group of rows; in a block
  FastDiv row_groups;      // threads one above the other in a class of rows
  FastDiv row_dilation;    // rows of the tile between a class's rows
  FastDiv source_columns;  // W of the source
  FastDiv source_vectors;  // 16-byte pieces that a block's part of a row may touch; of a run, all
  FastDiv target_vectors;
  FastDiv channels;
};

inline constexpr int kDepthwiseTileFloats = 4096;  // sources, later targets of a block
inline constexpr int kDepthwiseTilePlanes = 64;
inline constexpr int kDepthwiseTileThreads = 128;
constexpr size_t depthwise_tile_bytes(int kernel) {
  return (kDepthwiseTileFloats + 8 + size_t{kDepthwiseTilePlanes} * kernel * kernel) * sizeof(float);
}

// A thread makes this many rows by columns of targets at a time: a cell.
inline constexpr int kDepthwiseCellRows = 2;
inline constexpr int kDepthwiseCellColumns = 8;
inline constexpr int kDepthwiseLargeThreads = 256;
// Weights and sources of a block in shared memory: 48 KiB, or 99 KiB where that saves many halos.
inline constexpr int kDepthwiseLargeFloats[] = {48 * 256, 99 * 256};

// Many taps, any layout (depthwise_large.cuh).
struct DepthwiseLargeParams {
  DepthwiseImageParams image;
  int kernel_rows = 0;  // R S
  int kernel_columns = 0;
  int images = 0;  // N
  int block_images = 0;
  FastDiv block_channels;
  FastDiv chunks;  // of block_channels
  // Shared memory, in floats: filters, then from `tile` on planes, [image][channel][row][column].
  int weight_pitch = 0;  // from row to row
  int weight_plane = 0;
  int tile = 0;
  int pitch = 0;
  int plane = 0;
  int floats = 0;
  // Neighbouring lanes are channels (NHWC): cells are counted by channel, column, row. Else by column, row,
  // channel.
  bool channels_fast = false;
  int cells = 0;
  FastDiv cells_inner;
  FastDiv cells_middle;
  int vector = 1;         // channels of an access
  FastDiv fetch_vectors;  // in a block's planes
  FastDiv fetch_columns;  // in a tile
  int fetch_rows = 0;     // threads that share a column
  FastDiv taps;           // R * S
  FastDiv tap_columns;    // S
};

inline constexpr int kDepthwisePixelBytes = 256;  // of a strip's channels, at most

enum class DepthwiseImagePath { kStrip, kTile, kLarge };

struct DepthwiseImagePlan {
  DepthwiseImagePath path = DepthwiseImagePath::kStrip;
  DepthwiseStep step = DepthwiseStep::kOne;
  std::string kernel;
  std::string tile;
  std::string reason;
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  DepthwiseStripParams strip;  // of the path that it is, but for the tensors
  DepthwiseTileParams tile_params;
  DepthwiseLargeParams large;
};

// Nothing where none of these kernels takes the problem.
std::optional<DepthwiseImagePlan> plan_depthwise_image(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip);

std::optional<DepthwiseImagePlan> plan_depthwise_strip(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip);
std::optional<DepthwiseImagePlan> plan_depthwise_tile(Conv2dPass pass, const Conv2dParams& params,
                                                      const Chip& chip);
std::optional<DepthwiseImagePlan> plan_depthwise_large(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip);

void launch_depthwise_image(Conv2dPass pass, const Conv2dParams& params, const DepthwiseImagePlan& plan,
                            cudaStream_t stream);

template <class T>
void launch_depthwise_tile(const DepthwiseTileParams& params, const DepthwiseImagePlan& plan, int kernel,
                           cudaStream_t stream);
template <class T>
void launch_depthwise_strip(const DepthwiseStripParams& params, const DepthwiseImagePlan& plan, int kernel,
                            cudaStream_t stream);
template <class T>
void launch_depthwise_large(const DepthwiseLargeParams& params, const DepthwiseImagePlan& plan,
                            cudaStream_t stream);

}  // namespace fastcnn
