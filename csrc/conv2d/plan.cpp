#include "conv2d/plan.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "conv2d/generic.h"

namespace fastcnn {

void check_indexable(int64_t value, const char* what) {
  constexpr int64_t kLimit = (int64_t{1} << 31) - (int64_t{1} << 22);
  if (value > kLimit) {
    throw std::runtime_error(std::string("fastcnn conv2d: ") + what + " is " + std::to_string(value) +
                             ", more than kernels can index");
  }
}

Conv2dPlan plan_conv2d(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const int64_t taps = int64_t{problem.r} * problem.s;
  check_indexable(int64_t{problem.h} * problem.w, "an input image's pixel count");
  check_indexable(int64_t{problem.p} * problem.q, "an output image's pixel count");
  check_indexable(taps, "the kernel size");
  check_indexable(taps * problem.c, "channels * kernel size");
  check_indexable(taps * problem.k, "filters * kernel size");
  check_indexable(taps * problem.channels_per_group() * problem.k, "the weight's element count");

  Conv2dPlan plan;
  if (problem.depthwise()) {
    plan.path = Conv2dPath::kDepthwise;
    plan.depthwise = plan_depthwise(pass, params, chip);
    plan.workspace_bytes = plan.depthwise.workspace_bytes;
    plan.splits = plan.depthwise.splits;
  } else if (std::optional<GroupedPlan> grouped = plan_grouped(pass, params, chip)) {
    plan.path = Conv2dPath::kGrouped;
    plan.workspace_bytes = grouped->workspace_bytes;
    plan.splits = grouped->splits;
    plan.grouped = *std::move(grouped);
  } else if (std::optional<ThinPlan> thin = plan_thin(pass, params, chip)) {
    plan.path = Conv2dPath::kThin;
    plan.workspace_bytes = thin->workspace_bytes;
    plan.splits = thin->splits;
    plan.thin = *std::move(thin);
  } else if (std::optional<PointwisePlan> pointwise = plan_pointwise(pass, params, chip)) {
    plan.path = Conv2dPath::kPointwise;
    plan.workspace_bytes = pointwise->workspace_bytes;
    plan.splits = pointwise->splits;
    plan.pointwise = *std::move(pointwise);
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
  if (plan.path == Conv2dPath::kGrouped) {
    launch_grouped(pass, params, plan.grouped, stream);
    return;
  }
  if (plan.path == Conv2dPath::kThin) {
    launch_thin(pass, params, plan.thin, stream);
    return;
  }
  if (plan.path == Conv2dPath::kPointwise) {
    launch_pointwise(pass, params, plan.pointwise, stream);
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
  const std::string pass_name = kPassNames[static_cast<int>(pass)];
  PlanText text;
  text.workspace_bytes = plan.workspace_bytes;
  text.splits = plan.splits;
  const auto told = [&text](const std::string& kernel, const std::string& tile, const auto& chosen) {
    text.kernel = kernel;
    text.tile = tile;
    text.reason = chosen.reason;
    text.grid = chosen.grid;
    text.threads = chosen.threads;
    text.shared_bytes = chosen.shared_bytes;
    return text;
  };
  if (plan.path == Conv2dPath::kDepthwise) {
    const DepthwisePlan& depthwise = plan.depthwise;
    if (depthwise.image) return told(depthwise.image->kernel, depthwise.image->tile, *depthwise.image);
    if (depthwise.large_wgrad) {
      return told(depthwise.large_wgrad->kernel, depthwise.large_wgrad->tile, *depthwise.large_wgrad);
    }
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
  if (plan.path == Conv2dPath::kGrouped) {
    return told("grouped_" + pass_name, plan.grouped.tile, plan.grouped);
  }
  if (plan.path == Conv2dPath::kThin) return told("thin_" + pass_name, plan.thin.tile, plan.thin);
  if (plan.path == Conv2dPath::kPointwise) {
    return told("pointwise_" + pass_name + "_mma", plan.pointwise.text, plan.pointwise);
  }
  text.kernel = "generic_" + pass_name;
  const TileShape& tile = tile_shape(plan.tile);
  text.tile =
      std::to_string(tile.rows) + "x" + std::to_string(tile.columns) + "x" + std::to_string(tile.depth);
  text.reason = plan.vectorized
                    ? "any shape, on FMA units; channels lie contiguous and aligned: 16-byte loads"
                    : "any shape, on FMA units; channels do not come in contiguous, aligned 16 bytes: one "
                      "element per load";
  if (plan.tile == Conv2dTile::kSmall || plan.tile == Conv2dTile::kTiny) {
    text.reason += "; few results: small tiles for more SMs, their reduction shared out within the block";
  }
  if (plan.phases > 1)
    text.reason += "; the stride's " + std::to_string(plan.phases) + " phases in one launch";
  if (plan.split_cycles > 0) {
    text.reason += std::string("; ") + (plan.splits > 1 ? "split" : "not split") + ": an estimated " +
                   std::to_string(plan.split_cycles) + " cycles with the second launch, " +
                   std::to_string(plan.unsplit_cycles) + " without";
  }
  text.grid = plan.grid;
  text.threads = plan.threads;
  text.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  return text;
}

}  // namespace fastcnn
