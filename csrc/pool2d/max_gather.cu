#include "pool2d/kernels.h"
#include "pool2d/launch_boxes.cuh"
#include "pool2d/max.cuh"

namespace fastcnn {

void launch_max_pool2d_gather(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_boxes(max_gather<T>, call, plan, stream);
  });
}

}  // namespace fastcnn
