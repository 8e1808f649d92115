// From a call and its plan to the launch of a tile kernel.
#pragma once

#include <cuda_runtime.h>

#include "common/ceil_div.h"
#include "common/launch.h"
#include "pool2d/divisor.cuh"
#include "pool2d/tile.cuh"

namespace fastcnn {

inline TileParams make_tile_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  const bool walks_input = pool2d_walks_input(call.op);
  TileParams params;
  params.input = call.input;
  params.indices = call.indices;
  params.output = call.output;
  params.rows = pool_rows(problem);
  params.columns = pool_columns(problem);
  params.index = call.index;
  params.planes = static_cast<int64_t>(problem.n) * problem.c;
  params.block_planes = plan.block_planes;
  params.block_rows = plan.block_rows;
  params.segment_rows = plan.segment_rows;
  const auto parts = [](int64_t whole, int64_t part) {
    return FastDiv(static_cast<int>(ceil_div(whole, part)));
  };
  params.by_strips = parts(walks_input ? problem.h : problem.p, plan.block_rows);
  params.by_columns = FastDiv(walks_input ? problem.w : problem.q);
  params.by_segments = parts(plan.block_rows, plan.segment_rows);
  params.common_divisor = static_cast<float>(common_divisor(problem));
  params.divisor_override = problem.divisor_override;
  params.count_include_pad = problem.count_include_pad;
  params.adaptive = problem.adaptive;
  return params;
}

template <class Kernel>
void launch_tile(Kernel kernel, const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  launch(plan.kernel.c_str(), kernel, config, make_tile_params(call, plan));
}

}  // namespace fastcnn
