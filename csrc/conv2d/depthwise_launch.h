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
    // Where image `first` begins in a tensor with this stride; what is not there stays null.
    const auto from_first = [&](const void* data, int64_t stride_n) {
      return data == nullptr
                 ? nullptr
                 : static_cast<char*>(const_cast<void*>(data)) + first * stride_n * dtype_size(params.dtype);
    };
    Conv2dParams images = params;
    images.problem.n = std::min(plan.images_per_launch, params.problem.n - first);
    images.input.data = from_first(params.input.data, params.input.stride_n);
    images.grad.data = from_first(params.grad.data, params.grad.stride_n);
    images.grad_activation.saved = from_first(params.grad_activation.saved, params.grad.stride_n);
    if (pass != Conv2dPass::kWgrad) {
      const int64_t stride_n = params.output.stride_n;
      images.output.data = from_first(params.output.data, stride_n);
      images.epilogue.residual = from_first(params.epilogue.residual, stride_n);
      images.epilogue.preactivation = from_first(params.epilogue.preactivation, stride_n);
    }
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
