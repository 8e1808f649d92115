#include "conv2d/plan.h"

#include <string>

#include "conv2d/generic.h"

namespace fastcnn {

Conv2dPlan plan_conv2d(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  Conv2dPlan plan;
  if (params.problem.depthwise()) {
    plan.path = Conv2dPath::kDepthwise;
    plan.depthwise = plan_depthwise(pass, params, chip);
    plan.workspace_bytes = plan.depthwise.workspace_bytes;
    plan.splits = plan.depthwise.splits;
  } else {
    plan_generic(pass, params, chip, plan);
  }
  return plan;
}

void run_conv2d(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan, cudaStream_t stream) {
  if (plan.path == Conv2dPath::kGeneric) {
    launch_generic(pass, params, plan, stream);
    return;
  }
  switch (pass) {
    case Conv2dPass::kFprop:
      launch_depthwise_fprop(params, plan.depthwise, stream);
      return;
    case Conv2dPass::kDgrad:
      launch_depthwise_dgrad(params, plan.depthwise, stream);
      return;
    case Conv2dPass::kWgrad:
      launch_depthwise_wgrad(params, plan.depthwise, stream);
      return;
  }
}

PlanText describe(const Conv2dPlan& plan, Conv2dPass pass) {
  static const char* const kPassNames[] = {"fprop", "dgrad", "wgrad"};
  PlanText text;
  text.workspace_bytes = plan.workspace_bytes;
  text.splits = plan.splits;
  if (plan.path == Conv2dPath::kDepthwise) {
    const DepthwisePlan& depthwise = plan.depthwise;
    text.kernel = depthwise.path;
    text.reason = depthwise.reason;
    text.tile = std::to_string(depthwise.tile.channel_threads) + " channel x " +
                std::to_string(depthwise.tile.pixel_threads) + " pixel threads, vector " +
                std::to_string(depthwise.vector);
    text.grid = depthwise.grid;
    text.threads = depthwise.tile.threads();
    text.shared_bytes = depthwise.shared_bytes;
    return text;
  }
  text.kernel = std::string("generic_") + kPassNames[static_cast<int>(pass)];
  text.tile = plan.tile == Conv2dTile::kWide ? "128x128x8" : "128x32x16";
  text.reason = plan.vectorized
                    ? "any shape, on FMA units; channels lie contiguous and aligned: 16-byte loads"
                    : "any shape, on FMA units; channels do not come in contiguous, aligned 16 bytes: one "
                      "element per load";
  text.grid = plan.grid;
  text.threads = plan.threads;
  text.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  return text;
}

}  // namespace fastcnn
