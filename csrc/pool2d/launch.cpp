#include "pool2d/kernels.h"

namespace fastcnn {

void launch_pool2d(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  switch (call.op) {
    case Pool2dOp::kMaxFprop:
      return launch_max_pool2d_fprop(call, plan, stream);
    case Pool2dOp::kMaxBprop:
      return launch_max_pool2d_bprop(call, plan, stream);
    case Pool2dOp::kMaxGather:
      return launch_max_pool2d_gather(call, plan, stream);
    case Pool2dOp::kAverageFprop:
      return launch_average_pool2d_fprop(call, plan, stream);
    case Pool2dOp::kAverageBprop:
      return launch_average_pool2d_bprop(call, plan, stream);
  }
}

}  // namespace fastcnn
