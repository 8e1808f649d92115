#include "common/ceil_div.h"
#include "common/launch.h"
#include "pool2d/kernels.h"
#include "pool2d/plane_bprop.cuh"
#include "pool2d/plane_fprop.cuh"

namespace fastcnn {
namespace {

PlaneParams make_plane_params(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  PlaneParams params;
  params.input = call.input;
  params.indices = call.indices;
  params.output = call.output;
  params.rows = pool_rows(problem);
  params.columns = pool_columns(problem);
  params.index = call.index;
  params.channels = call.channels_last ? problem.c : problem.n * problem.c;
  params.block_channels = plan.block_planes;
  params.by_chunks = FastDiv(static_cast<int>(ceil_div(params.channels, plan.block_planes)));
  params.by_lanes = FastDiv(plan.lanes);
  params.by_width = FastDiv(problem.w);
  params.by_outputs = FastDiv(problem.q);
  params.by_kernel_w = FastDiv(problem.kernel_w);
  params.by_pixels = FastDiv(problem.h * problem.w);
  params.stride_h = problem.stride_h;
  params.stride_w = problem.stride_w;
  return params;
}

}  // namespace

void launch_max_pool2d_plane(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_narrow_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LaunchConfig config;
    config.grid = dim3(static_cast<unsigned>(plan.grid));
    config.threads = plan.threads;
    config.shared_bytes = plan.shared_bytes;
    config.stream = stream;
    const auto run = [&](void (*kernel)(PlaneParams)) {
      launch(plan.kernel.c_str(), kernel, config, make_plane_params(call, plan));
    };
    if (!pool2d_walks_input(call.op)) {
      run(plane_max_fprop<T>);
    } else {
      run(call.channels_last ? plane_max_bprop<T, true> : plane_max_bprop<T, false>);
    }
  });
}

}  // namespace fastcnn
