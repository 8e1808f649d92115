#include "pool2d/kernels.h"
#include "pool2d/launch_boxes.cuh"
#include "pool2d/max.cuh"

namespace fastcnn {
namespace {

template <class T, bool kTrack>
void launch_typed(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  constexpr int kWidest = 16 / sizeof(T);
  if (plan.splits > 1) {
    launch_boxes(max_fprop<T, 1, kTrack, true>, call, plan, stream);
  } else if (plan.vector == kWidest) {
    launch_boxes(max_fprop<T, kWidest, kTrack, false>, call, plan, stream);
  } else {
    launch_boxes(max_fprop<T, 1, kTrack, false>, call, plan, stream);
  }
}

}  // namespace

void launch_max_pool2d_fprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (call.index == Pool2dIndex::kNone) {
      launch_typed<T, false>(call, plan, stream);
    } else {
      launch_typed<T, true>(call, plan, stream);
    }
  });
}

}  // namespace fastcnn
