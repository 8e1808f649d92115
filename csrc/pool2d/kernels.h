// The launchers of the pool kernels: a call and its plan in, work on the stream out.
#pragma once

#include <cuda_runtime.h>

#include "pool2d/plan.h"
#include "pool2d/problem.h"

namespace fastcnn {

void launch_max_pool2d_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_max_pool2d_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_max_pool2d_gather(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

// Global pools, either layout: every op but gather.
void launch_max_pool2d_global(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_global(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

// 2x2 windows side by side, NHWC: every op but gather.
void launch_max_pool2d_window(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_window(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

// Strips (NHWC) and tiles (NCHW): every op but gather.
void launch_max_pool2d_strip(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_strip(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_max_pool2d_tile_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_max_pool2d_tile_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_tile_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);
void launch_average_pool2d_tile_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

// Large windows that overlap, whole planes at a time: max only, and of NCHW bprop only.
void launch_max_pool2d_plane(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

// The one of them that call.op and plan.path name.
void launch_pool2d(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream);

}  // namespace fastcnn
