#include "pool2d/average.cuh"

#include "pool2d/kernels.h"
#include "pool2d/launch_boxes.cuh"

namespace fastcnn {

void launch_average_pool2d_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = 16 / sizeof(T);
    if (plan.splits > 1) {
      launch_boxes(average_fprop<T, 1, true>, call, plan, stream);
    } else if (plan.vector == kWidest) {
      launch_boxes(average_fprop<T, kWidest, false>, call, plan, stream);
    } else {
      launch_boxes(average_fprop<T, 1, false>, call, plan, stream);
    }
  });
}

void launch_average_pool2d_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = 16 / sizeof(T);
    if (plan.splits > 1) {
      launch_boxes(average_bprop<T, 1, true>, call, plan, stream);
    } else if (plan.vector == kWidest) {
      launch_boxes(average_bprop<T, kWidest, false>, call, plan, stream);
    } else {
      launch_boxes(average_bprop<T, 1, false>, call, plan, stream);
    }
  });
}

}  // namespace fastcnn
