#include "conv2d/depthwise_dgrad.cuh"

#include "conv2d/depthwise_launch.h"

namespace fastcnn {

void launch_depthwise_dgrad(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream) {
  if (plan.image) {
    launch_depthwise_image(Conv2dPass::kDgrad, params, *plan.image, stream);
    return;
  }
  const Conv2dProblem& problem = params.problem;
  const auto covering = [](int extent, int step) { return (extent + step - 1) / step; };
  // An empty image launches nothing; its divisors only have to exist.
  const auto divider = [](int extent) { return FastDiv(std::max(1, extent)); };
  DepthwiseDgradParams kernel_params;
  kernel_params.tile = plan.tile;
  kernel_params.weights.view = params.weight;
  kernel_params.weights.channels = problem.c;
  kernel_params.weights.filters = problem.filters_per_group();
  kernel_params.weights.filter_taps = FastDiv(problem.r * problem.s);
  kernel_params.weights.filter_columns = FastDiv(problem.s);
  kernel_params.weight_taps = plan.weight_taps;
  kernel_params.channel_tiles = FastDiv(depthwise_channel_tiles(plan, problem.c));
  kernel_params.columns = divider(problem.w);
  kernel_params.row_groups = divider(static_cast<int>(depthwise_dgrad_row_groups(problem)));
  kernel_params.stride_h = FastDiv(problem.stride_h);
  kernel_params.stride_w = FastDiv(problem.stride_w);
  kernel_params.shift_p = covering((problem.r - 1) * problem.dilation_h, problem.stride_h);
  kernel_params.shift_q = covering((problem.s - 1) * problem.dilation_w, problem.stride_w);

  for_each_launch(Conv2dPass::kDgrad, params, plan, [&](const Conv2dParams& images, int) {
    kernel_params.conv = images;
    visit_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto kernel = plan.vector > 1 ? depthwise_dgrad<T, 16 / sizeof(T)> : depthwise_dgrad<T, 1>;
      launch("conv2d::depthwise_dgrad", kernel, depthwise_config(plan, stream), kernel_params);
    });
  });
}

}  // namespace fastcnn
