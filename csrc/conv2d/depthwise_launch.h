// What the three depthwise launchers share.
#pragma once

#include <algorithm>

#include "common/ceil_div.h"
#include "common/launch.h"
#include "conv2d/depthwise.h"
#include "conv2d/depthwise_weights.cuh"

namespace fastcnn {

// Calls f(params of the images of launch i, i) for every launch of the plan. In wgrad the output has no
// images.
template <class F>
void for_each_launch(Conv2dPass pass, const Conv2dParams& params, const DepthwisePlan& plan, F&& f) {
  for (int i = 0; i < plan.launches; ++i) {
    const int first = i * plan.images_per_launch;
    const auto skip = [&](TensorView& view) {
      view.data = static_cast<char*>(view.data) + first * view.stride_n * dtype_size(params.dtype);
    };
    Conv2dParams images = params;
    images.problem.n = std::min(plan.images_per_launch, params.problem.n - first);
    skip(images.input);
    skip(images.grad);
    if (pass != Conv2dPass::kWgrad) skip(images.output);
    f(images, i);
  }
}

inline LaunchConfig depthwise_config(const DepthwisePlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.tile.threads();
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  return config;
}

inline int depthwise_channel_tiles(const DepthwisePlan& plan, int channels) {
  return static_cast<int>(ceil_div(channels, plan.tile.channel_threads * plan.vector));
}

}  // namespace fastcnn
