// Which kernel, which tile: decided here and nowhere else, from the problem, the strides and the chip. Host
// code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/chip.h"
#include "common/plan_text.h"
#include "conv2d/depthwise.h"
#include "conv2d/grouped.h"
#include "conv2d/pointwise.h"
#include "conv2d/problem.h"

namespace fastcnn {

enum class Conv2dPath { kGeneric, kDepthwise, kGrouped, kPointwise };
enum class Conv2dTile { kWide, kNarrow };  // 128 x 128 with 8 x 8 a thread; 128 x 32 with 4 x 4

struct Conv2dPlan {
  Conv2dPath path = Conv2dPath::kGeneric;
  size_t workspace_bytes = 0;
  int splits = 1;

  // kGeneric
  Conv2dTile tile = Conv2dTile::kNarrow;
  bool vectorized = false;
  int64_t split_length = 0;
  int64_t grid = 0;
  int threads = 0;
  int shared_bytes = 0;
  int launches = 1;  // dgrad takes one for each phase of the stride

  DepthwisePlan depthwise;  // kDepthwise
  GroupedPlan grouped;      // kGrouped
  PointwisePlan pointwise;  // kPointwise
};

// Throws std::runtime_error where a count does not fit the 32-bit indices of the kernels.
void check_indexable(int64_t value, const char* what);

// Addresses count only by their alignment; null ones count as aligned, so that a plan can be made without
// tensors.
Conv2dPlan plan_conv2d(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

PlanText describe(const Conv2dPlan& plan, Conv2dPass pass);

// Launches what the plan says, on the stream. The workspace in params holds plan.workspace_bytes.
void run_conv2d(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan, cudaStream_t stream);

}  // namespace fastcnn
