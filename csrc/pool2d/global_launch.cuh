// From a call and its plan to the launch of a global kernel.
#pragma once

#include <cuda_runtime.h>

#include "common/ceil_div.h"
#include "common/launch.h"
#include "pool2d/global_nchw.cuh"
#include "pool2d/global_nhwc.cuh"

namespace fastcnn {

inline GlobalParams make_global_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  GlobalParams params;
  params.input = call.input;
  params.indices = call.indices;
  params.output = call.output;
  params.index = call.index;
  params.pixels = problem.h * problem.w;
  params.divisor =
      static_cast<float>(problem.divisor_override != 0 ? problem.divisor_override : params.pixels);
  params.ranks = plan.splits;
  params.by_ranks = FastDiv(plan.splits);
  params.by_pixels = FastDiv(params.pixels);
  params.by_channels = FastDiv(problem.c);
  params.block_planes = plan.block_planes;
  params.block_pixels = plan.block_pixels;
  params.lanes = plan.lanes;
  params.vectors = problem.c / plan.vector;
  if (call.channels_last) {
    params.by_lanes = FastDiv(plan.lanes);
    params.by_chunks = FastDiv(static_cast<int>(ceil_div(params.vectors, plan.lanes)));
  } else {
    params.planes = problem.n * problem.c;
  }
  if (pool2d_walks_input(call.op)) {
    const int64_t whole = call.channels_last ? params.pixels : int64_t{plan.block_planes} * params.pixels;
    params.by_slices = FastDiv(static_cast<int>(ceil_div(whole, plan.block_pixels)));
  } else {
    params.by_slices = FastDiv(1);
  }
  return params;
}

template <class T, bool kMax>
void launch_global(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  const auto run = [&](void (*kernel)(GlobalParams)) {
    launch(plan.kernel.c_str(), kernel, config, make_global_params(call, plan));
  };
  const bool back = pool2d_walks_input(call.op);
  if (call.channels_last) {
    run(back ? global_nhwc_bprop<T, kMax> : global_nhwc_fprop<T, kMax>);
  } else if (back) {
    run(global_nchw_bprop<T, kMax>);
  } else {
    run(plan.staged ? global_nchw_staged_fprop<T, kMax> : global_nchw_fprop<T, kMax>);
  }
}

}  // namespace fastcnn
