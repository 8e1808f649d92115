#include <algorithm>

#include "common/ceil_div.h"
#include "common/power_of_two.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// Loads or stores that a thread has under way where there is work enough for the whole chip.
constexpr int64_t kInFlight = 8;
// NCHW planes below this have little of whole aligned vectors.
constexpr int64_t kStagedBelowBytes = 256;

// One window that holds the whole image and nothing else.
bool is_global(const Pool2dProblem& problem) {
  if (problem.p != 1 || problem.q != 1) return false;
  return problem.adaptive ||
         (problem.kernel_h == problem.h && problem.kernel_w == problem.w && problem.pad_h == 0 &&
          problem.pad_w == 0 && problem.dilation_h == 1 && problem.dilation_w == 1);
}

// Threads of a block in whole warps.
int whole_warps(int64_t threads) {
  return static_cast<int>(ceil_div(threads, 32) * 32);
}

std::string counted(int64_t count, const char* thing) {
  return std::to_string(count) + " " + thing + (count == 1 ? "" : "s");
}

void plan_nhwc(const Pool2dCall& call, const Chip& chip, Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  const bool back = pool2d_walks_input(call.op);
  const int64_t pixels = int64_t{problem.h} * problem.w;
  const int64_t vectors = problem.c / plan.vector;

  // Wide lanes read long runs; but every SM wants a block, and a pair of vectors fills a sector still.
  int64_t lanes = std::min<int64_t>(vectors, kGlobalLanes);
  const auto chunks = [&] { return ceil_div(vectors, lanes); };
  lanes = ceil_div(vectors, chunks());
  if (!back) {
    while (4 * problem.n * chunks() < 3 * chip.sm_count && lanes > 2) lanes = ceil_div(lanes, 2);
  }
  if (chunks() > 1) lanes += lanes % 2;

  int64_t blocks = problem.n * chunks();
  int64_t ranks;
  if (back) {
    ranks = std::min(std::max<int64_t>(kPoolThreads / lanes, 1), pixels);
    int64_t stores = kInFlight;
    while (stores > 1 && blocks * ceil_div(pixels, ranks * stores) < chip.sm_count) stores /= 2;
    const int64_t slices = ceil_div(pixels, ranks * stores);
    plan.block_pixels = static_cast<int>(ceil_div(pixels, slices));
    blocks *= slices;
  } else {
    const bool many = blocks >= 4 * chip.sm_count;
    const int64_t most = (many ? kPoolThreads : kGlobalThreads) / lanes;
    ranks = std::min(most, ceil_div(pixels, blocks >= chip.sm_count ? kInFlight : 2));
  }
  plan.lanes = static_cast<int>(lanes);
  plan.splits = static_cast<int>(ranks);
  plan.grid = blocks;
  plan.threads = whole_warps(ranks * lanes);
  const std::string side = counted(lanes * plan.vector, "channel");
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  const int bytes = dtype_size(call.dtype);
  if (back) {
    plan.shared_bytes = pool2d_global_nhwc_bprop_bytes(bytes, maximum);
    plan.tile = counted(plan.block_pixels, "pixel") + " of " + side;
  } else {
    plan.shared_bytes = pool2d_global_bytes(plan.vector, maximum);
    plan.tile = side + " of an image; " + counted(ranks, "thread") + " along its pixels";
  }
  plan.reason = "one window holds the whole image; NHWC with whole aligned groups of channels";
}

void plan_nchw(const Pool2dCall& call, const Chip& chip, Pool2dPlan& plan) {
  const Pool2dProblem& problem = call.problem;
  const int64_t pixels = int64_t{problem.h} * problem.w;
  const int64_t planes = int64_t{problem.n} * problem.c;
  const int64_t vector = plan.vector;
  const int bytes = dtype_size(call.dtype);
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  plan.reason = "one window holds the whole image; NCHW: ";

  if (pool2d_walks_input(call.op)) {
    // A group of planes starts at a whole vector whatever their size; large ones are cut into slices.
    int64_t elements = kPoolThreads * vector * kInFlight;
    while (elements > 64 * vector && ceil_div(planes * pixels, elements) < 2 * chip.sm_count) elements /= 2;
    const int64_t groups = std::max<int64_t>(1, elements / (vector * pixels));
    plan.block_planes = static_cast<int>(std::min<int64_t>(groups * vector, kGlobalBpropPlanes));
    plan.block_pixels = static_cast<int>(std::min(elements, plan.block_planes * pixels));
    plan.grid = ceil_div(planes, plan.block_planes) *
                ceil_div(plan.block_planes * pixels, int64_t{plan.block_pixels});
    plan.threads = whole_warps(std::min<int64_t>(kPoolThreads, plan.block_pixels / vector));
    plan.shared_bytes = pool2d_global_nchw_bprop_bytes(bytes, maximum);
    plan.tile = "runs of " + counted(plan.block_pixels, "input");
    plan.reason += "a run of planes is written 16 bytes at a time";
    return;
  }

  plan.staged = pixels * bytes < kStagedBelowBytes && pixels * bytes % 16 != 0 && pool2d_planes_fit(call);
  int64_t ranks = 4;
  if (!plan.staged) {
    // At least a vector's length: one thread for each element before the first whole vector.
    const int64_t wanted = ceil_div(pixels, vector * kInFlight);
    ranks = std::clamp<int64_t>(power_of_two_up(wanted), vector, 32);
    while (ranks < kGlobalThreads && ranks * vector * 2 < pixels && planes * ranks < chip.sm_count * 512) {
      ranks *= 2;
    }
  }
  int64_t block_planes = std::max<int64_t>(1, kPoolThreads / ranks);
  if (plan.staged) block_planes = std::min(block_planes, kGlobalStagedBytes / (pixels * bytes));
  while (block_planes > 1 && block_planes * ranks > 64 && ceil_div(planes, block_planes) < chip.sm_count) {
    block_planes = ceil_div(block_planes, 2);
  }
  plan.splits = static_cast<int>(ranks);
  plan.block_planes = static_cast<int>(block_planes);
  plan.grid = ceil_div(planes, block_planes);
  plan.threads = whole_warps(block_planes * ranks);
  plan.shared_bytes = plan.staged ? pool2d_global_staged_bytes(maximum) : pool2d_global_bytes(1, maximum);
  plan.tile = counted(block_planes, "plane") + "; " + counted(ranks, "thread") + " share one";
  plan.reason += plan.staged ? "small planes come 16 bytes at a time through shared memory"
                             : "the whole vectors of a plane are read 16 bytes at a time";
}

}  // namespace

std::optional<Pool2dPlan> plan_global_pool2d(const Pool2dCall& call, const Chip& chip) {
  const Pool2dProblem& problem = call.problem;
  const bool back = pool2d_walks_input(call.op);
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  if (call.op == Pool2dOp::kMaxGather || call.dtype == DType::kFloat64 || !is_global(problem)) {
    return std::nullopt;
  }
  // Pixels of a plane at one distance from each other, and counted in 32 bits, groups of planes included.
  const TensorView& large = back ? call.output : call.input;
  const int64_t pixels = int64_t{problem.h} * problem.w;
  const bool even = problem.w > 1 && (problem.h == 1 || large.stride_h == problem.w * large.stride_w);
  if (!even || pixels >= int64_t{1} << 27 || pixels * large.stride_w >= int64_t{1} << 30) return std::nullopt;
  const bool vectors = call.channels_last
                           ? pool2d_vectors_fit(call)
                           : large.stride_w == 1 && reinterpret_cast<uintptr_t>(call.output.data) % 16 == 0;
  if (!vectors || int64_t{problem.n} * problem.c >= int64_t{1} << 30) return std::nullopt;

  Pool2dPlan plan;
  plan.path = Pool2dPath::kGlobal;
  plan.vector = 16 / dtype_size(call.dtype);
  call.channels_last ? plan_nhwc(call, chip, plan) : plan_nchw(call, chip, plan);
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;
  plan.items = int64_t{problem.n} * problem.c * (back ? pixels : 1) / (call.channels_last ? plan.vector : 1);
  plan.kernel = std::string("pool2d::global_") + (maximum ? "max_" : "average_") +
                (back ? "bprop" : "fprop") + (call.channels_last ? "_nhwc" : "_nchw") +
                (plan.staged ? "_staged" : "");
  return plan;
}

}  // namespace fastcnn
