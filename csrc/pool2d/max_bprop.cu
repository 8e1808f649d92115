#include "pool2d/kernels.h"
#include "pool2d/launch_boxes.cuh"
#include "pool2d/max.cuh"

namespace fastcnn {
namespace {

template <class T, class Index>
void launch_typed(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  constexpr int kWidest = 16 / sizeof(T);
  if (plan.splits > 1) {
    launch_boxes(max_bprop<T, 1, Index, true>, call, plan, stream);
  } else if (plan.vector == kWidest) {
    launch_boxes(max_bprop<T, kWidest, Index, false>, call, plan, stream);
  } else {
    launch_boxes(max_bprop<T, 1, Index, false>, call, plan, stream);
  }
}

}  // namespace

void launch_max_pool2d_bprop(const Pool2dCall& call, const Pool2dPlan& plan, cudaStream_t stream) {
  visit_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (call.index) {
      case Pool2dIndex::kUint8Offset:
        return launch_typed<T, uint8_t>(call, plan, stream);
      case Pool2dIndex::kInt32Offset:
        return launch_typed<T, int32_t>(call, plan, stream);
      case Pool2dIndex::kInt64Flat:
        return launch_typed<T, int64_t>(call, plan, stream);
      case Pool2dIndex::kNone:
        break;
    }
    throw std::logic_error("fastcnn: max pooling's bprop needs indices");
  });
}

}  // namespace fastcnn
