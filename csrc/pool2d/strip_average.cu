#include "pool2d/kernels.h"
#include "pool2d/strip_bprop.cuh"
#include "pool2d/strip_fprop.cuh"
#include "pool2d/strip_launch.cuh"

namespace fastcnn {

void launch_average_pool2d_strip(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_narrow_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool apart = call.problem.stride_h == 2;
    if (pool2d_walks_input(call.op)) {
      launch_strip(apart ? strip_bprop<T, false, 3, 2> : strip_bprop<T, false, 3, 1>, call, plan, stream);
    } else {
      launch_strip(apart ? strip_fprop<T, false, 3, 2> : strip_fprop<T, false, 3, 1>, call, plan, stream);
    }
  });
}

}  // namespace fastcnn
