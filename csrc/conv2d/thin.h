// Convolution of few input channels (C <= 4, one group): what its kernels are launched with, plan and
// launcher.
//
// A block walks tiles of output pixels of one image. For each it brings the box of x that the tile sees to
// shared memory once, as it lies in memory: a row of an NHWC image is one dense run of W * C elements, an
// NCHW image has such runs of W in each of C planes. What the pixels multiply, the taps (r, s, c) of the
// window, is one dimension of reduction.
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

inline constexpr int kThinThreads = 256;
inline constexpr int kThinArenaBytes = 70 * 1024;     // with tables, two blocks an SM of 164 KB, one of 100
inline constexpr int kThinMaxReduction = 512;         // taps of all channels, padding included
inline constexpr int kThinSlots = 512;                // pixels of a tile of fprop
inline constexpr int kThinFilters = 256;              // of a block of fprop
inline constexpr int kThinMmaFilters = 64;            // that a warp multiplies at a time,
inline constexpr int kThinMmaPixels = 32;             // with so many pixels
inline constexpr int kThinRunFilters = 16;            // that a warp on FMA units sums at a time,
inline constexpr int kThinRunPixels = 128;            // for so many pixels
inline constexpr int kThinWgradSlots = 256;           // pixels of a tile of wgrad
inline constexpr int kThinWgradWarps = 16;            // of a block of wgrad, at most
inline constexpr int kThinOutputPixels = 32;          // that a warp multiplies at a time, few output channels
inline constexpr int kThinOutputColumns = 80;         // filters of all taps
inline constexpr int kThinOutputWeights = 12 * 1024;  // elements in shared memory
inline constexpr int kThinUnitTaps = 32;              // that a warp of wgrad sums on FMA units,
inline constexpr int kThinUnitOctets = 5;             // of taps, on tensor cores, at most
inline constexpr int kThinMostOutputs = 8;            // output channels that count as few,
inline constexpr int kThinLeastPixels = 8;            // of an image: fewer leave lanes or tiles idle
inline constexpr int kThinStageBytes = 24 * 1024;     // of x, few output channels on FMA units: two stages
inline constexpr int kThinStageWeights = 2048;        // floats
inline constexpr int kThinLaneRows = 4;               // output rows of a thread, there
inline constexpr int kThinRowsStageBytes = 40 * 1024;  // of x and weights, rows reduced on tensor cores: two

// The box of x in shared memory: [plane][row][element], where pitches are congruent to the image's strides
// modulo 16 bytes: a box that starts as the image does, within 16 bytes, has every row so aligned.
struct ThinBox {
  TensorView view;
  int image_h = 0, image_w = 0;
  int planes = 1, rows = 1;
  int columns = 1;     // image pixels of a row
  int pixel = 1;       // elements from pixel to pixel: C, or 1 in planes
  bool dense = false;  // rows are dense runs in memory
  int row_pitch = 0, plane_pitch = 0;
  FastDiv vectors;  // 16-byte vectors that a row may touch
  FastDiv row_count, pixel_div;
};

// The taps in the order of reduction: `runs` runs of elements that lie side by side in the box, for NHWC a
// row (r) of the window, for NCHW a row (c, r). Where elements are read by pairs, a run begins with `lead`
// (0 or 1) elements of padding, and its pitch is even.
struct ThinTaps {
  int runs = 0, run_length = 0, run_pitch = 0, lead = 0;
  int r = 0, s = 0, channels = 0;
  int row_step = 1, column_step = 1;  // box rows, columns from tap to tap
  FastDiv run_pitch_div, pixel_div, r_div;
};

struct ThinFpropParams {
  ThinBox x;
  ThinTaps taps;
  TensorView weight;
  TensorView output;
  Epilogue epilogue;
  int out_h = 0, out_w = 0, filters = 0;
  int step_h = 1, step_w = 1;    // image rows (columns) of x from pixel to pixel
  int first_h = 0, first_w = 0;  // where the first pixel's window begins
  int tile_h = 1, tile_w = 1;
  int tiles = 0, tiles_per_block = 1;
  int slab_filters = 0;   // of a block
  int filter_blocks = 1;  // of those a warp's (thread's) at a time
  int pixel_blocks = 1;
  int steps = 0;  // of 16 reduction indices, on tensor cores; else the padded count of reduction indices
  bool weight_channels_inner = false;
  bool weight_dense = false;  // filters are one run of memory, one behind the other, 16 bytes aligned
  bool vector_store = false;
  FastDiv slabs, tiles_h, tiles_w, tile_columns, block_filters;
  FastDiv weight_filter, weight_s, weight_r, weight_c;  // take an index of a filter apart
};

// wgrad. Taps are numbered as the weight lies in its partial sums, (c, r, s); one more is the bias
// gradient's. For few output channels x and dy are exchanged: the box is dy's, with K channels, and what is
// called dy here is x, with C filters.
struct ThinWgradParams {
  ThinBox x;
  TensorView dy;
  GradActivation activation, box_activation;  // of dy, of the box
  TensorView output;
  void* bias_grad = nullptr;
  void* box_sums = nullptr;   // exchanged: the bias gradient, sums over the box's image
  float* partials = nullptr;  // of each split [K][C][R][S], then those of the bias; null with one split
  int64_t split_sums = 0;     // of a split
  bool exchanged = false;
  bool finishes_box = false;  // takes it past its activation or sums it
  int out_h = 0, out_w = 0, filters = 0;
  int taps = 0, channels = 0;
  int tap_rows = 1, tap_columns = 1;  // box rows, columns from tap to tap
  int step_h = 1, step_w = 1, first_h = 0, first_w = 0;
  int tile_h = 1, tile_w = 1;
  int slots = 0;  // of a tile's pixels, whole steps
  int block_filters = 0;
  int dy_pitch = 0;         // of a pixel's filters in shared memory, or of a filter's pixels
  bool dy_vectors = false;  // 16-byte loads
  int tiles = 0, tiles_per_block = 1;
  int block_units = 0;  // of one block
  int units = 0;
  int streams = 1;  // warps (threads) that share a unit's pixels
  FastDiv slabs, unit_tiles, tiles_h, tiles_w, tile_columns;
  FastDiv dy_vectors_div;  // 16-byte vectors of a pixel's filters, or of a filter's pixels
  FastDiv unit_parts;      // units that share their filters
  FastDiv slot_div;        // where the gradient is turned
  FastDiv box_columns;     // where the box is summed
  FastDiv s_div, r_div;
};

// Few output channels of many input channels: fprop, and dgrad with dy as the input.
struct ThinOutputParams {
  TensorView input;
  GradActivation activation;  // dgrad
  TensorView weight;
  int64_t weight_out = 0, weight_in = 0;  // its strides by output and input channels
  TensorView output;
  Epilogue epilogue;  // fprop
  int image_h = 0, image_w = 0, channels = 0;
  int out_h = 0, out_w = 0, filters = 0;
  int r = 0, s = 0, columns = 0;      // (tap, filter)
  int row_step = 1, column_step = 1;  // pixels from tap to tap
  bool flipped = false;               // dgrad: the last tap sees the first pixel
  int first_h = 0, first_w = 0;       // where the first tile's box begins
  int tile_h = 1, tile_w = 1;
  int box_h = 1;
  int positions = 0, pitch = 0;  // pixels of a box, whole warps'; of a column in shared memory
  int steps = 0;                 // of 32 channels
  int tiles = 0, tiles_per_block = 1;
  FastDiv tiles_h, tiles_w, tile_columns, box_columns;
  FastDiv channel_div, filter_div, s_div;
};

// The same on FMA units. A plane of the box is one channel, or the channels of 16 bytes.
struct ThinOutputBoxParams {
  ThinBox x;                  // `planes` of a stage
  GradActivation activation;  // dgrad
  TensorView weight;
  int64_t weight_out = 0, weight_in = 0;
  TensorView output;
  Epilogue epilogue;  // fprop
  int channels = 0, filters = 0;
  int out_h = 0, out_w = 0;
  int r = 0, s = 0;
  int row_step = 1, column_step = 1;  // box rows, columns from tap to tap
  int step_h = 1, step_w = 1;         // and from pixel to pixel
  bool flipped = false;
  bool vectors = false;        // planes of 16 bytes of channels
  bool rows_slide = false;     // 3 rows of taps, neighbours as the pixels' are: read once for all pixels
  bool channels_fast = false;  // neighbouring threads bring neighbouring planes
  int first_h = 0, first_w = 0;
  int tile_h = 1, tile_w = 1;
  int slots = 0;    // threads that share a tile's pixels,
  int streams = 1;  // and that share a pixel's channels
  int tiles = 0, tiles_per_block = 1;
  FastDiv stages, tiles_h, tiles_w, tile_columns, warp_slots;
  FastDiv plane_div, box_columns, tap_div, s_div;
};

// On tensor cores with rows of taps in the reduction. Planes are the channels of 16 bytes; a column is a
// tap's (s, filter), a position a pixel of the box in a row where an output's window begins.
struct ThinOutputRowsParams : ThinOutputBoxParams {
  bool weight_vectors = false;   // 16 bytes of channels a load
  int positions = 0, pitch = 0;  // of a tile; of a column in shared memory
  int weight_start = 0;          // in a stage, behind the box
  int weight_pitch = 0;          // of a plane of weights, [row of taps][column]
  FastDiv warp_parts;            // warps that share the positions; the others' columns are further ones
  FastDiv column_div, filter_div;
};

// Filters that a thread sums.
inline int thin_output_filters(int filters) {
  return filters <= 2 ? 2 : (filters <= 4 ? 4 : 8);
}

// Tiles of 16 positions that a warp multiplies with so many octets of columns: what registers hold.
__host__ __device__ inline constexpr int thin_rows_tiles(int octets) {
  return octets < 5 ? 4 : 3;
}

struct ThinPlan {
  ThinOutputParams output;
  ThinOutputBoxParams output_box;
  ThinOutputRowsParams output_rows;
  bool few_outputs = false;   // `output` is what is launched, without tensor cores `output_box`
  bool rows_reduced = false;  // of them `output_rows` is
  ThinFpropParams fprop;
  ThinWgradParams wgrad;
  bool tensor_cores = false;
  int unit_octets = 0;         // of taps, that a warp of wgrad sums; of columns, few output channels
  bool paired = false;         // on tensor cores: elements of x are read two at a time
  bool channels_last = false;  // of y, dy
  int splits = 1;
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
  std::string tile, reason;
};

// Nothing where this path does not cover the problem: see the reasons in thin_plan.cpp.
std::optional<ThinPlan> plan_thin(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

// thin_output_plan.cpp: few output channels on FMA units.
std::optional<ThinPlan> plan_thin_output_box(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

// thin_output_rows_plan.cpp: few output channels on tensor cores, windows of more taps.
std::optional<ThinPlan> plan_thin_output_rows(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

void launch_thin(Conv2dPass pass, const Conv2dParams& params, const ThinPlan& plan, cudaStream_t stream);

namespace thin {
// Each element type has a .cu file of its own.
template <class T>  // float
void launch_fprop(const ThinFpropParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>  // float
void launch_wgrad(const ThinWgradParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_fprop_mma(const ThinFpropParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_output_mma(const ThinOutputParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_output_rows(const ThinOutputRowsParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>
void launch_output_box(const ThinOutputBoxParams& params, const ThinPlan& plan, cudaStream_t stream);
template <class T>  // __half, __nv_bfloat16
void launch_wgrad_mma(const ThinWgradParams& params, const ThinPlan& plan, cudaStream_t stream);
}  // namespace thin

}  // namespace fastcnn
