// Grouped convolution with few channels per group: what its kernels are launched with, plan and launcher.
//
// A block takes a *slab* of neighbouring groups and walks tiles of output pixels. For each it brings the box
// of pixels that the tile sees, with all channels of the slab, to shared memory once; the slab's weights lie
// beside it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/chip.h"
#include "common/fastdiv.h"
#include "conv2d/problem.h"

namespace fastcnn {

inline constexpr int kGroupedThreads = 256;
inline constexpr int kGroupedArenaBytes = 69 * 1024;  // with tables, three blocks an SM of 228 KB, one of 100
inline constexpr int kGroupedMaxTaps = 32;            // of an axis, and phases of a stride
inline constexpr int kGroupedWgradSlots = 256;        // pixels of a tile of wgrad
inline constexpr int kGroupedMmaSlots = 256;          // pixels of a tile on tensor cores,
inline constexpr int kGroupedMmaPixels = 64;          // of which a warp takes so many at a time
inline constexpr int kGroupedMmaFilters = 64;         // of a slab, at most
inline constexpr int kGroupedMaxChunks = 1024;        // of channels, over all taps
inline constexpr int kGroupedMmaTaps = 128;           // of both axes, on tensor cores
inline constexpr int kGroupedMaxPhases = 16;          // of both axes, on tensor cores
inline constexpr int kGroupedUnitTaps = 3;            // taps that one thread of wgrad sums
inline constexpr int kGroupedUnitTiles = 9;           // (octet of channels, tap) that one warp of wgrad sums

// Pixels by channels of one slab, and where they lie in shared memory: [image][row][column][pitch] elements.
struct GroupedBox {
  TensorView view;
  GradActivation activation;
  int image_n = 0, image_h = 0, image_w = 0;  // beyond these, zeros
  int channels = 0;                           // of the tensor
  int slab_channels = 0;
  int images = 1, rows = 1, columns = 1;
  int row_step = 1, column_step = 1;  // image pixels between neighbours in the box
  int pitch = 0;
  int access = 1;              // channels per load: 16 or 8 bytes of them, or one
  bool channels_fast = false;  // neighbouring threads take neighbouring channels
  FastDiv vectors, pixels, row_count, column_count;

  int box_pixels() const { return images * rows * columns; }
};

// The taps along one axis, sorted by the phase of the stride that they belong to (dgrad; elsewhere one
// phase), and which box row (column) they see from the box row of their pixel.
struct GroupedAxis {
  int taps = 0, phases = 1;
  int start[kGroupedMaxTaps + 1] = {};  // of each phase
  int phase[kGroupedMaxTaps] = {};
  int tap[kGroupedMaxTaps] = {};
  int offset[kGroupedMaxTaps] = {};
};

// fprop and dgrad. "in" is what is gathered (x, or dy), "out" what is written (y, or dx).
struct GroupedImageParams {
  GroupedBox box;
  TensorView weight;
  TensorView output;
  Epilogue epilogue;
  GroupedAxis axis_h, axis_w;
  int group_in = 0, group_out = 0;  // channels per group
  int channels_out = 0, slab_out = 0;
  int slab_groups = 0, groups = 0;
  int image_n = 0, out_h = 0, out_w = 0;
  int tile_n = 1, tile_h = 1, tile_w = 1;  // pixels of one phase
  int pixel_rows = 1, pixel_columns = 1;   // box rows (columns) from one pixel of a phase to the next
  int tile_step_h = 0, tile_step_w = 0;    // image rows of `in` from tile to tile
  int first_h = 0, first_w = 0;            // image row of the first tile's box
  int weight_rows = 0;                     // tap rows in shared memory at a time
  int filter_blocks = 1;
  int tiles = 0, tiles_per_block = 1;
  // On tensor cores: steps of 16 reduction indices, all phases' and where each one's start; the blocks of
  // filters in a group and of pixels in a tile.
  int steps = 0, step_start[kGroupedMaxPhases + 1] = {};
  int group_blocks = 1, pixel_blocks = 1;
  FastDiv block_filters, group_block_div;
  bool weight_channels_inner = false;
  bool weight_dense = false;  // on tensor cores: a filter is one run of whole 16-byte vectors
  bool vector_store = false;
  FastDiv slabs, tiles_h, tiles_w, tile_columns, tile_pixels;
  // Take an index of the slab's weights apart. weight_runs: runs of 8, or elements, of a filter.
  FastDiv weight_s, weight_r, weight_c, weight_k, weight_taps, weight_runs;
};

struct GroupedWgradParams {
  GroupedBox x, dy;
  TensorView output;
  void* bias_grad = nullptr;
  float* partials = nullptr;  // of each split [K][C/g][R][S], then [K] of the bias; null with one split
  int r = 0, s = 0, taps = 0;
  int group_in = 0, group_out = 0;
  int channels_out = 0;
  int slab_groups = 0, groups = 0;
  int out_h = 0, out_w = 0;
  int pixel_rows = 1, pixel_columns = 1;  // box rows of x from one output pixel to the next
  int tap_rows = 1, tap_columns = 1;      // box rows of x from tap to tap
  int step_h = 1, step_w = 1;             // image rows of x from one output pixel to the next
  int first_h = 0, first_w = 0;
  int tiles = 0, tiles_per_block = 1;
  // What a thread sums, 4 filters x 4 channels x kGroupedUnitTaps taps, or a warp on tensor cores, 16 filters
  // x kGroupedUnitTiles.
  int units = 0;        // of the slab
  int block_units = 0;  // of one block
  int streams = 1;      // threads (warps) that share a unit's pixels
  FastDiv slabs, unit_tiles, tiles_h, tiles_w;
  FastDiv tap_units, channel_units, filter_units;  // take a thread's unit apart
  FastDiv unit_parts, tap_div;                     // a warp's
  FastDiv s_div;
};

struct GroupedPlan {
  GroupedImageParams image;  // fprop and dgrad, but for addresses
  GroupedWgradParams wgrad;
  bool tensor_cores = false;
  int filter_run = 4;  // filters per thread of fprop and dgrad; per warp on tensor cores
  int splits = 1;
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
  std::string tile, reason;
};

// Nothing where this path does not cover the problem: see the reasons in grouped_plan.cpp.
std::optional<GroupedPlan> plan_grouped(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

void launch_grouped(Conv2dPass pass, const Conv2dParams& params, const GroupedPlan& plan,
                    cudaStream_t stream);

namespace grouped {
// Each element type has a .cu file of its own.
template <class T>
void launch_image(const GroupedImageParams& params, bool dgrad, const GroupedPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_image_mma(const GroupedImageParams& params, bool dgrad, const GroupedPlan& plan,
                      cudaStream_t stream);
template <class T>
void launch_wgrad(const GroupedWgradParams& params, const GroupedPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_wgrad_mma(const GroupedWgradParams& params, const GroupedPlan& plan, cudaStream_t stream);
}  // namespace grouped

}  // namespace fastcnn
