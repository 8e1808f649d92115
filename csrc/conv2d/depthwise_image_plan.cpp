#include "conv2d/depthwise_axis_plan.h"

namespace fastcnn {

std::optional<DepthwiseImagePlan> plan_depthwise_image(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool outputs = problem.n > 0 && problem.h > 0 && problem.w > 0 && problem.p > 0 && problem.q > 0;
  if (pass == Conv2dPass::kWgrad || params.dtype == DType::kFloat64 || problem.filters_per_group() != 1 ||
      !outputs) {
    return std::nullopt;
  }
  if (std::optional<DepthwiseImagePlan> strip = plan_depthwise_strip(pass, params, chip)) return strip;
  if (std::optional<DepthwiseImagePlan> tile = plan_depthwise_tile(pass, params, chip)) return tile;
  return plan_depthwise_large(pass, params, chip);
}

void launch_depthwise_image(Conv2dPass pass, const Conv2dParams& params, const DepthwiseImagePlan& plan,
                            cudaStream_t stream) {
  const auto tensors = depthwise::tensors_of(pass, params);
  const auto bind = [&](DepthwiseImageParams& image) {
    image.source = tensors.source;
    image.target = tensors.target;
    image.weight = params.weight;
    if (pass == Conv2dPass::kFprop) {
      image.epilogue = params.epilogue;
    } else {
      image.grad_activation = params.grad_activation;
    }
  };
  visit_narrow_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (plan.path == DepthwiseImagePath::kStrip) {
      DepthwiseStripParams strip = plan.strip;
      bind(strip.image);
      launch_depthwise_strip<T>(strip, plan, params.problem.r, stream);
    } else if (plan.path == DepthwiseImagePath::kLarge) {
      DepthwiseLargeParams large = plan.large;
      bind(large.image);
      launch_depthwise_large<T>(large, plan, stream);
    } else {
      DepthwiseTileParams tile = plan.tile_params;
      bind(tile.image);
      launch_depthwise_tile<T>(tile, plan, params.problem.r, stream);
    }
  });
}

}  // namespace fastcnn
