#include "conv2d/depthwise_wgrad.cuh"

#include "conv2d/depthwise_launch.h"
#include "conv2d/split_sum.h"

namespace fastcnn {
namespace {

template <class T, int V>
void launch_partial(const DepthwisePlan& plan, const DepthwiseWgradParams& params, cudaStream_t stream) {
  using Acc = accumulator_t<T>;
  static_assert(sizeof(DepthwiseWgradShared<Acc, V>) == depthwise_wgrad_shared_bytes(V, sizeof(Acc)));
  launch("conv2d::depthwise_wgrad", depthwise_wgrad<T, V>, depthwise_config(plan, stream), params);
}

// The second pass: adds the partial sums, the bias gradient's behind those of the weight.
void add_splits(const Conv2dParams& params, int splits, cudaStream_t stream) {
  SplitSumParams sum;
  sum.partials = params.workspace;
  sum.output = params.output;
  sum.dtype = params.dtype;
  sum.splits = splits;
  sum.n = params.problem.k;
  sum.h = params.problem.r;
  sum.w = params.problem.s;
  if (params.bias_grad != nullptr) {
    sum.tail_output = params.bias_grad;
    sum.tail = params.problem.k;
  }
  launch_split_sum(sum, stream);
}

void launch_sweep(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream) {
  DepthwiseSweepParams kernel_params = plan.sweep.params;
  if (plan.splits > 1) kernel_params.partials = static_cast<float*>(params.workspace);
  visit_narrow_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (plan.sweep.channels_last) {
      sweep::launch_sweep<T, true>(kernel_params, plan, stream);
    } else {
      sweep::launch_sweep<T, false>(kernel_params, plan, stream);
    }
  });
  if (plan.splits > 1) add_splits(params, plan.splits, stream);
}

void launch_large(const Conv2dParams& params, const DepthwiseLargeWgradPlan& plan, cudaStream_t stream) {
  DepthwiseLargeWgradParams kernel_params = plan.params;
  kernel_params.x = params.input;
  kernel_params.dy = params.grad;
  kernel_params.activation = params.grad_activation;
  kernel_params.output = params.output;
  kernel_params.bias_grad = params.bias_grad;
  if (plan.splits > 1) kernel_params.partials = static_cast<float*>(params.workspace);
  visit_narrow_dtype(params.dtype, [&](auto tag) {
    launch_depthwise_large_wgrad<typename decltype(tag)::type>(kernel_params, plan, stream);
  });
  if (plan.splits > 1) add_splits(params, plan.splits, stream);
}

}  // namespace

void launch_depthwise_wgrad(const Conv2dParams& params, const DepthwisePlan& plan, cudaStream_t stream) {
  if (plan.large_wgrad) return launch_large(params, *plan.large_wgrad, stream);
  if (plan.sweep.chosen) return launch_sweep(params, plan, stream);
  const Conv2dProblem& problem = params.problem;
  const auto windows = [](int taps) { return (taps + kDepthwiseTapWindow - 1) / kDepthwiseTapWindow; };
  DepthwiseWgradParams kernel_params;
  kernel_params.tile = plan.tile;
  kernel_params.split_pixels = static_cast<int>(plan.split_pixels);
  kernel_params.channel_tiles = FastDiv(depthwise_channel_tiles(plan, problem.k));
  kernel_params.windows = FastDiv(windows(problem.r) * windows(problem.s));
  kernel_params.window_columns = FastDiv(windows(problem.s));
  kernel_params.columns = FastDiv(problem.q);
  kernel_params.rows = FastDiv(problem.p);
  kernel_params.multiplier = FastDiv(problem.filters_per_group());

  for_each_launch(Conv2dPass::kWgrad, params, plan, [&](const Conv2dParams& images, int i) {
    kernel_params.conv = images;
    kernel_params.first_split = i * plan.splits;
    visit_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      constexpr int kVector = sizeof(T) < 4 ? 4 : 16 / sizeof(T);
      if (plan.vector > 1) {
        launch_partial<T, kVector>(plan, kernel_params, stream);
      } else {
        launch_partial<T, 1>(plan, kernel_params, stream);
      }
    });
  });

  add_splits(params, plan.launches * plan.splits, stream);
}

}  // namespace fastcnn
