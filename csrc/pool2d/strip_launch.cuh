// From a call and its plan to the launch of a strip kernel.
#pragma once

#include <cuda_runtime.h>

#include "common/ceil_div.h"
#include "common/launch.h"
#include "pool2d/divisor.cuh"
#include "pool2d/strip.cuh"

namespace fastcnn {

inline StripParams make_strip_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem problem = pool2d_strip_problem(call.problem);
  const int dilation = call.problem.dilation_h;
  const bool walks_input = pool2d_walks_input(call.op);
  StripParams params;
  const auto take = [&](const TensorView& view, TensorView& own, StripPhase& phase) {
    own = view;
    own.stride_h *= dilation;
    own.stride_w *= dilation;
    phase = {view.stride_h, view.stride_w};
  };
  take(call.input, params.input, params.input_phase);
  take(call.indices, params.indices, params.indices_phase);
  take(call.output, params.output, params.output_phase);
  params.by_dilation = FastDiv(dilation);
  params.rows = pool_rows(problem);
  params.columns = pool_columns(problem);
  params.index = call.index;
  params.block_rows = plan.block_rows;
  params.block_columns = plan.block_columns;
  params.lanes = plan.lanes;
  params.vectors = problem.c / plan.vector;
  const auto parts = [](int64_t whole, int64_t part) {
    return FastDiv(static_cast<int>(ceil_div(whole, part)));
  };
  params.by_lanes = FastDiv(plan.lanes);
  params.by_chunks = parts(params.vectors, plan.lanes);
  params.by_column_tiles = parts(walks_input ? problem.w : problem.q, plan.block_columns);
  params.by_strips = parts(walks_input ? problem.h : problem.p, plan.block_rows);
  params.common_divisor = static_cast<float>(common_divisor(problem));
  params.divisor_override = problem.divisor_override;
  params.count_include_pad = problem.count_include_pad;
  return params;
}

template <class Kernel>
void launch_strip(Kernel kernel, const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  launch(plan.kernel.c_str(), kernel, config, make_strip_params(call, plan));
}

}  // namespace fastcnn
