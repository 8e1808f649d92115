#include "pool2d/kernels.h"
#include "pool2d/tile_bprop.cuh"
#include "pool2d/tile_launch.cuh"

namespace fastcnn {

void launch_max_pool2d_tile_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_narrow_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int kernel = pool2d_common_kernel(call.problem);
    if (kernel == 2) return launch_tile(tile_bprop<T, true, 2, 2>, call, plan, stream);
    if (kernel == 0) return launch_tile(tile_bprop<T, true, 0, 1>, call, plan, stream);
    if (call.problem.stride_h == 2) return launch_tile(tile_bprop<T, true, 3, 2>, call, plan, stream);
    launch_tile(tile_bprop<T, true, 3, 1>, call, plan, stream);
  });
}

}  // namespace fastcnn
