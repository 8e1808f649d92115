// From a call and its plan to the launch of a window kernel.
#pragma once

#include <cuda_runtime.h>

#include "common/ceil_div.h"
#include "common/launch.h"
#include "pool2d/window.cuh"

namespace fastcnn {

inline WindowParams make_window_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  // An adaptive average whose windows stand side by side is a sliding one.
  Pool2dProblem problem = call.problem;
  if (problem.adaptive) {
    problem.adaptive = false;
    problem.kernel_h = problem.stride_h = problem.h / problem.p;
    problem.kernel_w = problem.stride_w = problem.w / problem.q;
  }
  WindowParams params;
  params.input = call.input;
  params.indices = call.indices;
  params.output = call.output;
  params.rows = pool_rows(problem);
  params.columns = pool_columns(problem);
  params.index = call.index;
  params.items = static_cast<int>(plan.items);
  params.by_vectors = FastDiv(problem.c / plan.vector);
  params.by_columns = FastDiv(plan.block_columns);
  params.by_rows = FastDiv(plan.block_rows);
  params.common_divisor = static_cast<float>(common_divisor(problem));
  params.divisor_override = problem.divisor_override;
  params.count_include_pad = problem.count_include_pad;
  return params;
}

template <class T, bool kMax>
void launch_window(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.stream = stream;
  const auto run = [&](void (*kernel)(WindowParams)) {
    launch(plan.kernel.c_str(), kernel, config, make_window_params(call, plan));
  };
  run(pool2d_walks_input(call.op) ? window_bprop<T, kMax, 2> : window_fprop<T, kMax, 2>);
}

}  // namespace fastcnn
