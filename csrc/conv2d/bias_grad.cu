#include "conv2d/bias_grad.cuh"

#include <algorithm>

#include "common/launch.h"
#include "conv2d/split_sum.h"

namespace fastcnn {
namespace {

template <class T, int CV, int PV>
void launch_partial(LaunchConfig config, const BiasGradKernelParams& params) {
  config.shared_bytes = sizeof(BiasGradShared<accumulator_t<T>, CV>);
  launch("conv2d::bias_grad", bias_grad<T, CV, PV>, config, params);
}

}  // namespace

void launch_bias_grad(const BiasGradParams& params, const BiasGradPlan& plan, cudaStream_t stream) {
  BiasGradKernelParams kernel_params;
  kernel_params.bias_grad = params;
  kernel_params.bias_grad.p = plan.rows;
  kernel_params.bias_grad.q = plan.columns;
  kernel_params.bias_grad.grad.stride_w *= plan.pixel_vector;
  kernel_params.tile = plan.tile;
  kernel_params.split_pixels = static_cast<int>(plan.split_pixels);
  const int channels = plan.tile.channel_threads * plan.channel_vector;
  kernel_params.channel_tiles = FastDiv(std::max(1, (params.k + channels - 1) / channels));
  kernel_params.rows = FastDiv(std::max(1, plan.rows));
  kernel_params.columns = FastDiv(std::max(1, plan.columns));

  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.tile.threads();
  config.stream = stream;
  for (int i = 0; i < plan.launches; ++i) {
    const int first = i * plan.images_per_launch;
    kernel_params.first_split = i * plan.splits;
    kernel_params.bias_grad.n = std::min(plan.images_per_launch, params.n - first);
    kernel_params.bias_grad.grad.data =
        static_cast<char*>(params.grad.data) + first * params.grad.stride_n * dtype_size(params.dtype);
    visit_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      constexpr int kVector = 16 / sizeof(T);
      if (plan.channel_vector > 1) {
        launch_partial<T, kVector, 1>(config, kernel_params);
      } else if (plan.pixel_vector > 1) {
        launch_partial<T, 1, kVector>(config, kernel_params);
      } else {
        launch_partial<T, 1, 1>(config, kernel_params);
      }
    });
  }

  SplitSumParams sum;
  sum.partials = params.workspace;
  sum.output.data = params.output;
  sum.output.stride_n = 1;
  sum.dtype = params.dtype;
  sum.splits = plan.launches * plan.splits;
  sum.n = params.k;
  launch_split_sum(sum, stream);
}

}  // namespace fastcnn
