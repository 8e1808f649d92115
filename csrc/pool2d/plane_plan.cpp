#include <algorithm>

#include "common/ceil_div.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// Windows of at least so many taps: below it, visiting each tap costs no more.
constexpr int64_t kFewestTaps = 16;

// A block's channels: as many as fit, fewer where that gives every SM a block; a multiple of `step`.
int64_t channels_of_block(int64_t channels, int64_t fitting, int64_t step, int64_t images, const Chip& chip) {
  int64_t block = std::min(fitting / step, ceil_div(channels, step));
  while (block > 1 && images * ceil_div(channels, block * step) < chip.sm_count) block = ceil_div(block, 2);
  if (block == 0) return 0;
  // Even parts.
  return ceil_div(ceil_div(channels, step), ceil_div(ceil_div(channels, step), block)) * step;
}

}  // namespace

std::optional<Pool2dPlan> plan_plane_pool2d(const Pool2dCall& call, const Chip& chip) {
  const Pool2dProblem& problem = call.problem;
  const bool back = call.op == Pool2dOp::kMaxBprop;
  const bool index_fits =
      call.index == Pool2dIndex::kUint8Offset || (call.index == Pool2dIndex::kNone && !back);
  if ((call.op != Pool2dOp::kMaxFprop && !back) || call.dtype == DType::kFloat64 || !index_fits ||
      problem.adaptive || int64_t{problem.kernel_h} * problem.kernel_w < kFewestTaps ||
      problem.stride_h >= problem.kernel_h || problem.stride_w >= problem.kernel_w) {
    return std::nullopt;
  }
  // NCHW fprop is the tiles' (tile.cuh).
  if (call.channels_last ? !pool2d_vectors_fit(call) : !back || !pool2d_planes_fit(call)) return std::nullopt;

  const int bytes = dtype_size(call.dtype);
  const int64_t vector = 16 / bytes;
  const int64_t room = back ? pool2d_plane_bprop_elements(bytes) : kPlaneFpropBytes / bytes;
  const int64_t widest = std::max(problem.w, problem.q);
  const int64_t tallest = back ? std::max(problem.h, problem.p) : problem.h;
  const int64_t fitting = std::min<int64_t>(room / (widest * tallest), kPoolThreads / 2);
  const int64_t channels = call.channels_last ? problem.c : int64_t{problem.n} * problem.c;
  const int64_t images = call.channels_last ? problem.n : 1;
  const int64_t block = channels_of_block(channels, fitting, vector, images, chip);
  if (block == 0 || channels >= int64_t{1} << 30) return std::nullopt;

  Pool2dPlan plan;
  plan.path = Pool2dPath::kPlane;
  plan.vector = static_cast<int>(vector);
  plan.block_planes = static_cast<int>(block);
  plan.lanes = static_cast<int>(block / vector);
  plan.threads = back ? kPoolThreads : kPlaneThreads;
  plan.shared_bytes = back ? pool2d_plane_bprop_bytes(bytes) : pool2d_plane_fprop_bytes(bytes);
  plan.grid = images * ceil_div(channels, block);
  if (plan.shared_bytes > static_cast<size_t>(chip.shared_bytes_per_block) || plan.grid >= int64_t{1} << 31) {
    return std::nullopt;
  }
  plan.items = int64_t{problem.n} * problem.c *
               (back ? int64_t{problem.h} * problem.w : int64_t{problem.p} * problem.q);
  plan.kernel = back ? "pool2d::plane_max_bprop" : "pool2d::plane_max_fprop";
  plan.tile = "planes of " + std::to_string(block) + " channels" +
              (back ? "; one thread scatters one channel's gradient" : "; rows first, then columns");
  plan.reason = "large windows overlap, and whole planes fit into shared memory";
  return plan;
}

}  // namespace fastcnn
