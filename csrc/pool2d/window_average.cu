#include "pool2d/kernels.h"
#include "pool2d/window_launch.cuh"

namespace fastcnn {

void launch_average_pool2d_window(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_narrow_dtype(
      call.dtype, [&](auto tag) { launch_window<typename decltype(tag)::type, false>(call, plan, stream); });
}

}  // namespace fastcnn
