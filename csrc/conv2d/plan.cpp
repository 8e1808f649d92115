#include "conv2d/plan.h"

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

namespace {

std::string generic_reason(const Conv2dPlan& plan) {
  std::string reason = "any shape, on FMA units; ";
  reason += plan.vectorized
                ? "channels lie contiguous and aligned: 16-byte loads"
                : "channels do not lie contiguous in aligned groups of 16 bytes: one element per load";
  return reason;
}

std::string json(const std::string& kernel, const std::string& tile, const std::string& reason, int64_t grid,
                 int threads, int64_t shared_bytes, size_t workspace_bytes, int splits) {
  return "{\"kernel\": \"" + kernel + "\", \"tile\": \"" + tile + "\", \"reason\": \"" + reason +
         "\", \"grid\": " + std::to_string(grid) + ", \"threads\": " + std::to_string(threads) +
         ", \"shared_bytes\": " + std::to_string(shared_bytes) +
         ", \"workspace_bytes\": " + std::to_string(workspace_bytes) +
         ", \"splits\": " + std::to_string(splits) + "}";
}

}  // namespace

std::string describe(const Conv2dPlan& plan, Conv2dPass pass) {
  static const char* const kPassNames[] = {"fprop", "dgrad", "wgrad"};
  const std::string pass_name = kPassNames[static_cast<int>(pass)];
  if (plan.path == Conv2dPath::kDepthwise) {
    const DepthwisePlan& depthwise = plan.depthwise;
    const std::string tile = std::to_string(depthwise.tile.channel_threads) + " channel x " +
                             std::to_string(depthwise.tile.pixel_threads) + " pixel threads, vector " +
                             std::to_string(depthwise.vector);
    return json(depthwise.path, tile, depthwise.reason, depthwise.grid, depthwise.tile.threads(), 0,
                plan.workspace_bytes, plan.splits);
  }
  return json("generic_" + pass_name, plan.tile == Conv2dTile::kWide ? "128x128x8" : "128x32x16",
              generic_reason(plan), plan.grid, plan.threads, plan.shared_bytes, plan.workspace_bytes,
              plan.splits);
}

}  // namespace fastcnn
