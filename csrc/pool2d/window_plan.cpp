#include <algorithm>

#include "common/ceil_div.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

constexpr int kSide = 2;
constexpr int64_t kFewestThreads = 64;

// 2 x 2 windows at stride 2, or what comes to the same.
bool side_by_side(const Pool2dProblem& problem) {
  if (problem.adaptive) return problem.h == kSide * problem.p && problem.w == kSide * problem.q;
  return pool2d_common_kernel(problem) == kSide;
}

}  // namespace

std::optional<Pool2dPlan> plan_window_pool2d(const Pool2dCall& call, const Chip& chip) {
  const Pool2dProblem& problem = call.problem;
  const bool back = pool2d_walks_input(call.op);
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  const bool index_fits =
      call.index == Pool2dIndex::kUint8Offset || (call.index == Pool2dIndex::kNone && !back);
  if (call.op == Pool2dOp::kMaxGather || call.dtype == DType::kFloat64 || !call.channels_last ||
      (maximum && !index_fits) || !side_by_side(problem) || !pool2d_vectors_fit(call)) {
    return std::nullopt;
  }
  // Places in an image are counted in 32 bits.
  for (const TensorView* view : {&call.input, &call.output, &call.indices}) {
    const int64_t rows = std::max(problem.h, problem.p) + kSide;
    const int64_t columns = std::max(problem.w, problem.q) + kSide;
    if (rows * view->stride_h + columns * view->stride_w >= int64_t{1} << 31) return std::nullopt;
  }

  Pool2dPlan plan;
  plan.path = Pool2dPath::kWindow;
  plan.vector = 16 / dtype_size(call.dtype);
  // Of bprop every input must be in a window, and every input's window must be walked.
  plan.block_rows = back ? std::max<int>(problem.p, ceil_div(problem.h + problem.pad_h, kSide)) : problem.p;
  plan.block_columns =
      back ? std::max<int>(problem.q, ceil_div(problem.w + problem.pad_w, kSide)) : problem.q;
  plan.items = int64_t{problem.n} * plan.block_rows * plan.block_columns * (problem.c / plan.vector);
  // The last block's overhang is counted in 32 bits too.
  if (plan.items > (int64_t{1} << 31) - kPoolThreads) return std::nullopt;
  int64_t threads = kPoolThreads;
  while (threads > kFewestThreads && ceil_div(plan.items, threads) < chip.sm_count) threads /= 2;
  plan.threads = static_cast<int>(threads);
  plan.grid = ceil_div(plan.items, threads);
  plan.kernel = std::string("pool2d::window_") + (maximum ? "max_" : "average_") + (back ? "bprop" : "fprop");
  plan.tile = "one thread: " + std::to_string(plan.vector) + " channels of one 2x2 window";
  plan.reason =
      "2x2 windows side by side; NHWC with whole aligned groups of channels: each tap is one 16-byte "
      "access";
  return plan;
}

}  // namespace fastcnn
