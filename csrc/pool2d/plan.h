// Which pool kernel runs a problem, how wide and with how many threads: the only place that chooses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/chip.h"
#include "common/dtype.h"
#include "pool2d/problem.h"

namespace fastcnn {

// The families of kernels. Each but the first has conditions; the general one runs every call.
enum class Pool2dPath { kGeneral, kGlobal, kWindow, kStrip, kPlane, kTile };

// General kernels: threads of a block where each has its own items, and where several share one.
constexpr int kPoolThreads = 256;
constexpr int kPoolSplitThreads = 512;

// Shared memory of a split block: one accumulator per thread, and for maxima its row and column.
constexpr size_t pool2d_split_bytes(size_t accumulator_bytes, bool places) {
  return kPoolSplitThreads * (accumulator_bytes + (places ? 2 * sizeof(int32_t) : 0));
}

// Strip kernels (strip.cuh): threads at most, rows of a ring, and how many 16-byte vectors a row of it holds:
// what block_columns * lanes <= kStripThreads columns of windows reach, with lanes <= kStripLanes.
constexpr int kStripThreads = 256;
constexpr int kStripLanes = 32;
constexpr int kStripRingRows = 4;
constexpr int strip_fprop_row_vectors(int stride) {
  return stride * kStripThreads + 2 * kStripLanes;
}
constexpr int kStripBpropRowVectors = kStripThreads + 2 * kStripLanes;
constexpr size_t strip_fprop_bytes(int stride) {
  return size_t{kStripRingRows} * strip_fprop_row_vectors(stride) * 16;
}
constexpr size_t strip_bprop_bytes(int element_bytes, bool offsets) {
  return size_t{kStripRingRows} * kStripBpropRowVectors * (16 + (offsets ? 16 / element_bytes : 0));
}

// Tile kernels (tile.cuh): bytes of the pool's input and of its output that a block holds. `even`: the output
// may be as large as the input.
constexpr int kTileThreads = 256;
constexpr int kTileLargeBytes = 16 * 1024;
constexpr int pool2d_tile_small_bytes(bool even) {
  return even ? kTileLargeBytes : 6 * 1024;
}
// Each of the three runs has room for the neighbours that share its first and last 16 bytes.
constexpr size_t pool2d_tile_bytes(int element_bytes, bool even, bool offsets) {
  return kTileLargeBytes + pool2d_tile_small_bytes(even) +
         (offsets ? pool2d_tile_small_bytes(even) / element_bytes : 0) + 3 * 32;
}

// Global kernels (global*.cuh): threads at most, and the most lanes, planes and bytes of planes that a block
// holds.
constexpr int kGlobalThreads = 512;
constexpr int kGlobalLanes = 32;
constexpr int kGlobalBpropPlanes = 512;
constexpr int kGlobalStagedBytes = 16 * 1024;
// A part of `values` values per thread, of maxima with their pixels.
constexpr size_t pool2d_global_bytes(int values, bool maximum) {
  return size_t{kGlobalThreads} * values * (maximum ? 8 : 4);
}
constexpr size_t pool2d_global_staged_bytes(bool maximum) {
  return kGlobalStagedBytes + 32 + pool2d_global_bytes(1, maximum);
}
constexpr size_t pool2d_global_nhwc_bprop_bytes(int element_bytes, bool maximum) {
  return size_t{kGlobalLanes} * (16 + (maximum ? 16 / element_bytes * sizeof(int32_t) : 0));
}
constexpr size_t pool2d_global_nchw_bprop_bytes(int element_bytes, bool maximum) {
  return size_t{kGlobalBpropPlanes} * (element_bytes + (maximum ? sizeof(int32_t) : 0));
}

// Plane kernels (plane.cuh): what a block's planes may take of the pool's input, at most two blocks an SM.
constexpr int kPlaneThreads = 512;
constexpr int kPlaneFpropBytes = 32 * 1024;
constexpr size_t pool2d_plane_fprop_bytes(int element_bytes) {
  return 2 * kPlaneFpropBytes + kPlaneFpropBytes / element_bytes;
}
constexpr int pool2d_plane_bprop_elements(int element_bytes) {
  return (element_bytes == 2 ? 14 : 12) * 1024;
}
// Gradients and offsets with room for neighbours, sums in float32.
constexpr size_t pool2d_plane_bprop_bytes(int element_bytes) {
  return static_cast<size_t>(pool2d_plane_bprop_elements(element_bytes)) * (element_bytes + 1 + 4) + 2 * 32;
}

// Rows reduced along their columns, and where: of max fprop with windows of any kind.
constexpr size_t pool2d_tile_rows_bytes(int element_bytes) {
  return kTileLargeBytes + kTileLargeBytes / element_bytes;
}

struct Pool2dPlan {
  Pool2dPath path = Pool2dPath::kGeneral;
  std::string kernel;  // the name given to the launch
  std::string tile;    // what one thread does, in words
  std::string reason;
  int threads = 1;  // per block
  size_t shared_bytes = 0;
  int64_t items = 0;  // what the pass writes, in vectors of channels
  int64_t grid = 0;   // blocks for all items
  // General kernels.
  int vector = 1;             // channels per thread, moved as one access
  int outputs_per_block = 1;  // items that a block writes
  int splits = 1;             // threads that share one item's window
  // Each launch has at most items_per_launch items, so that items can be counted in 32 bits.
  int64_t items_per_launch = 0;
  // Strips and tiles: a block's part of what the pass writes. Windows: rows and columns of them.
  int block_planes = 0;
  int block_rows = 0;
  int block_columns = 0;
  int lanes = 0;         // 16-byte vectors of channels
  int segment_rows = 0;  // a thread's part of block_rows
  // Global: `splits` threads share a plane; of bprop, the pixels (NHWC) or elements (NCHW) of a block.
  int block_pixels = 0;
  bool staged = false;  // planes come through shared memory
};

// The plan of a call: the first path whose conditions it meets, else the general kernels.
Pool2dPlan plan_pool2d(const Pool2dCall& call, const Chip& chip);

// The general kernels, for every call. vectors_fit says that every tensor of the call can be read and written
// 16 bytes of channels at a time (see pool2d_vectors_fit).
Pool2dPlan plan_general_pool2d(Pool2dOp op, const Pool2dProblem& problem, DType dtype, bool channels_last,
                               bool vectors_fit, const Chip& chip);
Pool2dPlan plan_general_pool2d(const Pool2dCall& call, const Chip& chip);

// The other paths; nothing where a condition fails.
std::optional<Pool2dPlan> plan_global_pool2d(const Pool2dCall& call, const Chip& chip);
std::optional<Pool2dPlan> plan_window_pool2d(const Pool2dCall& call, const Chip& chip);
// What the strips see of a dilated pool: one of its phases (strip.cuh), all of them as images. Other pools as
// they are.
Pool2dProblem pool2d_strip_problem(const Pool2dProblem& problem);
std::optional<Pool2dPlan> plan_strip_pool2d(const Pool2dCall& call, const Chip& chip);
std::optional<Pool2dPlan> plan_plane_pool2d(const Pool2dCall& call, const Chip& chip);
std::optional<Pool2dPlan> plan_tile_pool2d(const Pool2dCall& call, const Chip& chip);

// Whether channels lie side by side in every tensor of the call, in whole 16-byte groups at aligned
// addresses.
bool pool2d_vectors_fit(const Pool2dCall& call);

// Whether every tensor of the call is dense NCHW and starts at 16 bytes.
bool pool2d_planes_fit(const Pool2dCall& call);

// The side of square windows, undilated and not larger than 3, that the call's strides make one of the common
// kinds 2x2/2, 3x3/2 and 3x3/1; else 0.
int pool2d_common_kernel(const Pool2dProblem& problem);

}  // namespace fastcnn
