#include "pool2d/global_launch.cuh"
#include "pool2d/kernels.h"

namespace fastcnn {

void launch_max_pool2d_global(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_narrow_dtype(
      call.dtype, [&](auto tag) { launch_global<typename decltype(tag)::type, true>(call, plan, stream); });
}

}  // namespace fastcnn
