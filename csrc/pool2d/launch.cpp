#include "pool2d/kernels.h"

namespace fastcnn {
namespace {

void launch_general(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
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

}  // namespace

void launch_pool2d(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  const bool back = pool2d_walks_input(call.op);
  switch (plan.path) {
    case Pool2dPath::kGeneral:
      return launch_general(call, plan, stream);
    case Pool2dPath::kGlobal:
      return maximum ? launch_max_pool2d_global(call, plan, stream)
                     : launch_average_pool2d_global(call, plan, stream);
    case Pool2dPath::kWindow:
      return maximum ? launch_max_pool2d_window(call, plan, stream)
                     : launch_average_pool2d_window(call, plan, stream);
    case Pool2dPath::kStrip:
      return maximum ? launch_max_pool2d_strip(call, plan, stream)
                     : launch_average_pool2d_strip(call, plan, stream);
    case Pool2dPath::kPlane:
      return launch_max_pool2d_plane(call, plan, stream);
    case Pool2dPath::kTile:
      if (maximum) {
        return back ? launch_max_pool2d_tile_bprop(call, plan, stream)
                    : launch_max_pool2d_tile_fprop(call, plan, stream);
      }
      return back ? launch_average_pool2d_tile_bprop(call, plan, stream)
                  : launch_average_pool2d_tile_fprop(call, plan, stream);
  }
}

}  // namespace fastcnn
