// From a call and its plan to launches: cuts the output into boxes whose items 32 bits can count, and
// launches the kernel once for each; all but giant tensors are one box.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/launch.h"
#include "pool2d/plan.h"
#include "pool2d/problem.h"
#include "pool2d/walk.cuh"

namespace fastcnn {

inline Pool2dParams make_pool2d_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  Pool2dParams params;
  params.rows = pool_rows(problem);
  params.columns = pool_columns(problem);
  params.input = call.input;
  params.indices = call.indices;
  params.output = call.output;
  params.index = call.index;
  params.by_kernel_w = FastDiv(problem.kernel_w);
  params.adaptive = problem.adaptive;
  params.count_include_pad = problem.count_include_pad;
  params.divisor_override = problem.divisor_override;
  while ((1 << params.outputs_log2) < plan.outputs_per_block) ++params.outputs_log2;
  while ((1 << params.splits_log2) < plan.splits) ++params.splits_log2;
  return params;
}

template <class Kernel>
void launch_boxes(Kernel kernel, const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  if (plan.items == 0) return;
  const Pool2dProblem& problem = call.problem;
  const bool walks_input = pool2d_walks_input(call.op);
  const int y = walks_input ? problem.h : problem.p;
  const int x = walks_input ? problem.w : problem.q;
  const int c = problem.c / plan.vector;
  const int size[4] = {problem.n, call.channels_last ? y : c, call.channels_last ? x : y,
                       call.channels_last ? c : x};

  // Whole inner axes as long as their product fits; the first that does not is cut, and those outside it
  // advance one by one.
  int step[4];
  int64_t room = plan.items_per_launch;
  for (int i = 3; i >= 0; --i) {
    step[i] = static_cast<int>(std::min<int64_t>(size[i], room));
    room = step[i] == size[i] ? room / size[i] : 1;
  }

  Pool2dParams params = make_pool2d_params(call, plan);
  LaunchConfig config;
  config.threads = plan.threads;
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  int start[4];
  for (start[0] = 0; start[0] < size[0]; start[0] += step[0]) {
    for (start[1] = 0; start[1] < size[1]; start[1] += step[1]) {
      for (start[2] = 0; start[2] < size[2]; start[2] += step[2]) {
        for (start[3] = 0; start[3] < size[3]; start[3] += step[3]) {
          int extent[4];
          for (int i = 0; i < 4; ++i) extent[i] = std::min(step[i], size[i] - start[i]);
          params.box = PoolBox(start, extent, call.channels_last);
          config.grid = dim3((params.box.items() - 1) / plan.outputs_per_block + 1);
          launch(plan.kernel.c_str(), kernel, config, params);
        }
      }
    }
  }
}

}  // namespace fastcnn
