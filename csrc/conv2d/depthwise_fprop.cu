#include "conv2d/depthwise_fprop.cuh"

#include "conv2d/depthwise_launch.h"

namespace fastcnn {

void launch_depthwise_fprop(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream) {
  if (plan.image) {
    launch_depthwise_image(Conv2dPass::kFprop, params, *plan.image, stream);
    return;
  }
  const Conv2dProblem& problem = params.problem;
  DepthwiseFpropParams kernel_params;
  kernel_params.tile = plan.tile;
  kernel_params.weights.view = params.weight;
  kernel_params.weights.channels = problem.k;
  kernel_params.weights.filters = 1;
  kernel_params.weights.filter_taps = FastDiv(problem.r * problem.s);
  kernel_params.weights.filter_columns = FastDiv(problem.s);
  kernel_params.weight_taps = plan.weight_taps;
  kernel_params.channel_tiles = FastDiv(depthwise_channel_tiles(plan, problem.k));
  kernel_params.columns = FastDiv(problem.q);
  kernel_params.row_groups = FastDiv((problem.p + kDepthwiseRows - 1) / kDepthwiseRows);
  kernel_params.multiplier = FastDiv(problem.filters_per_group());

  for_each_launch(Conv2dPass::kFprop, params, plan, [&](const Conv2dParams& images, int) {
    kernel_params.conv = images;
    visit_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto kernel = plan.vector > 1 ? depthwise_fprop<T, 16 / sizeof(T)> : depthwise_fprop<T, 1>;
      launch("conv2d::depthwise_fprop", kernel, depthwise_config(plan, stream), kernel_params);
    });
  });
}

}  // namespace fastcnn
