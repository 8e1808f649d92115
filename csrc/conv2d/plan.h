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
#include "conv2d/thin.h"

namespace fastcnn {

enum class Conv2dPath { kGeneric, kDepthwise, kGrouped, kThin, kPointwise };
enum class Conv2dTile { kWide, kNarrow, kSmall, kTiny };  // 128 x 128, 128 x 32, 32 x 32, 16 x 16 results

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
  int64_t phases = 1;                            // of dgrad's stride
  int64_t unsplit_cycles = 0, split_cycles = 0;  // estimates that a wgrad's splits were decided by

  DepthwisePlan depthwise;  // kDepthwise
  GroupedPlan grouped;      // kGrouped
  ThinPlan thin;            // kThin
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
