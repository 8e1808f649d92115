// Depthwise convolution (groups == C, any channel multiplier): its plan and its launchers.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/ceil_div.h"
#include "common/chip.h"
#include "conv2d/depthwise_image.h"
#include "conv2d/depthwise_wgrad_large.h"
#include "conv2d/depthwise_wgrad_sweep.h"
#include "conv2d/launch_size.h"
#include "conv2d/problem.h"
#include "conv2d/thread_tile.h"

namespace fastcnn {

// Threads of a block, at most.
inline constexpr int kDepthwiseThreads = 256;
// Output rows that one thread of fprop and dgrad makes.
inline constexpr int kDepthwiseRows = 4;
// The groups of rows that dgrad cuts an image into: the rows of a group lie a stride apart, as many groups
// begin side by side as the stride and the image have rows.
inline int64_t depthwise_dgrad_row_groups(const Conv2dProblem& problem) {
  return ceil_div(problem.h, int64_t{kDepthwiseRows} * problem.stride_h) *
         std::min(problem.stride_h, problem.h);
}
// wgrad keeps a window of this many by this many taps in registers.
inline constexpr int kDepthwiseTapWindow = 3;
// fprop, dgrad: the weights of a block's channels in shared memory. 8 KiB hold the 64 taps of 64 half
// channels or of 32 float channels, and leave the rest to the L1 cache, which serves the overlap of
// neighbouring windows.
inline constexpr int kDepthwiseWeightBytes = 8 * 1024;

// wgrad: half of the block's threads hand their sums to the other half.
constexpr int depthwise_wgrad_shared_bytes(int vector, int accumulator_bytes) {
  // The taps of a window and the bias gradient.
  constexpr int kSums = kDepthwiseTapWindow * kDepthwiseTapWindow + 1;
  return kDepthwiseThreads / 2 * kSums * vector * accumulator_bytes;
}

struct DepthwisePlan {
  std::optional<DepthwiseImagePlan> image;  // fprop, dgrad: the fast kernels; the rest is then empty
  std::string path;                         // the kernel and its layout, as plan() reports it
  std::string reason;                       // why this path
  int vector = 1;                           // neighbouring channels per thread, moved as one access
  ThreadTile tile;
  int images_per_launch = 0;  // pixel indices of one launch fit 32 bits; more images take more launches
  int launches = 0;
  int64_t grid = 0;          // blocks of a full launch
  int weight_taps = 0;       // fprop, dgrad: taps of a block's channels that lie in shared memory at a time
  int64_t split_pixels = 0;  // wgrad: pixels that one block sums
  int splits = 1;            // wgrad: partial sums per launch; workspace holds launches * splits of them
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
  DepthwiseSweep sweep;                                // wgrad, where it takes one sweep
  std::optional<DepthwiseLargeWgradPlan> large_wgrad;  // wgrad of many taps; the rest is then empty
};

// Strides and addresses count only for the choice of the vector width and of the lanes; null addresses count
// as aligned. launch_pixels bounds the pixel indices of one launch; tests lower it.
DepthwisePlan plan_depthwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                             int64_t launch_pixels = kLaunchPixels);

// plan_depthwise without the fast kernels.
DepthwisePlan plan_any_depthwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                                 int64_t launch_pixels = kLaunchPixels);

// How long a chip takes for `blocks` blocks of one unit of work, in units that an SM does with all the blocks
// that it holds at a time. The fewer it holds, the less it overlaps.
double chip_time(int64_t blocks, int sm_count, int resident);

// wgrad in one sweep; nothing where that does not cover the problem.
std::optional<DepthwisePlan> plan_depthwise_sweep(const Conv2dParams& params, const Chip& chip);

void launch_depthwise_fprop(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream);
void launch_depthwise_dgrad(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream);
void launch_depthwise_wgrad(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream);

namespace sweep {
template <class T, bool kChannelsLast>
void launch_sweep(const DepthwiseSweepParams& params, const DepthwisePlan& plan, cudaStream_t stream);
}  // namespace sweep

}  // namespace fastcnn
