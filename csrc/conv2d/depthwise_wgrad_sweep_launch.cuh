// From the plan of a sweep to its kernel: one element type and layout a source file.
#pragma once

#include <stdexcept>

#include "common/launch.h"
#include "conv2d/depthwise.h"
#include "conv2d/depthwise_wgrad_sweep.cuh"

namespace fastcnn::sweep {

template <class T, bool kChannelsLast>
void launch_sweep(const DepthwiseSweepParams& params, const DepthwisePlan& plan, cudaStream_t stream) {
  static_assert(sizeof(StageShared<T>) == kSweepArenaBytes && sizeof(SumsShared) == kSweepArenaBytes);
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.tile.threads();
  config.shared_bytes = kSweepArenaBytes;
  config.stream = stream;
  const auto start = [&](auto tile) {
    launch("conv2d::depthwise_wgrad_sweep", sweep_kernel<T, typename decltype(tile)::type>, config, params);
  };
  const auto with_stride = [&](auto stride) {
    constexpr int kStride = decltype(stride)::value;
    constexpr int kRows = sweep_rows(kChannelsLast, kStride);
    switch (plan.sweep.window) {
      case 3:
        return start(TypeTag<SweepTile<kChannelsLast, 3, kStride, kRows, true>>{});
      case 5:
        return start(TypeTag<SweepTile<kChannelsLast, 5, kStride, kRows, true>>{});
      case 7:
        return start(TypeTag<SweepTile<kChannelsLast, 7, kStride, kRows, true>>{});
      default:
        return start(TypeTag<SweepTile<kChannelsLast, kSweepAnyWindow, kStride, kRows, false>>{});
    }
  };
  if (plan.sweep.stride == 1) return with_stride(std::integral_constant<int, 1>{});
  with_stride(std::integral_constant<int, 2>{});
}

}  // namespace fastcnn::sweep
