#include "pool2d/plan.h"

#include <algorithm>

#include "common/ceil_div.h"
#include "common/dense_planes.h"
#include "common/power_of_two.h"

namespace fastcnn {
namespace {

constexpr int64_t kMinThreads = 64;
// From here on one thread per window would wait too long on its own loads.
constexpr int64_t kSplitFromTaps = 32;
constexpr int64_t kTapsPerSplit = 4;
// Block numbers and items stay below 2^31 with the last block's overhang.
constexpr int64_t kItemsPerLaunch = (int64_t{1} << 31) - 1024;

// The most inputs along an axis that one output reads.
int64_t window_length(bool adaptive, int64_t input, int64_t output, int64_t kernel) {
  if (adaptive) return output == 0 ? 0 : std::min(input, ceil_div(input, output) + 1);
  return std::min(kernel, input);
}

// The most windows along an axis that one input lies in.
int64_t covering_length(bool adaptive, int64_t input, int64_t output, int64_t extent, int64_t stride) {
  if (adaptive) return input == 0 ? 0 : std::min(output, ceil_div(output, input) + 1);
  return std::min(output, ceil_div(extent, stride));
}

const char* kernel_name(Pool2dOp op, bool split) {
  switch (op) {
    case Pool2dOp::kMaxFprop:
      return split ? "pool2d::max_fprop_split" : "pool2d::max_fprop";
    case Pool2dOp::kMaxBprop:
      return split ? "pool2d::max_bprop_split" : "pool2d::max_bprop";
    case Pool2dOp::kMaxGather:
      return "pool2d::max_gather";
    case Pool2dOp::kAverageFprop:
      return split ? "pool2d::average_fprop_split" : "pool2d::average_fprop";
    case Pool2dOp::kAverageBprop:
      return split ? "pool2d::average_bprop_split" : "pool2d::average_bprop";
  }
  return "pool2d::unknown";
}

int index_bytes(Pool2dIndex index) {
  switch (index) {
    case Pool2dIndex::kUint8Offset:
      return 1;
    case Pool2dIndex::kInt32Offset:
      return 4;
    case Pool2dIndex::kInt64Flat:
      return 8;
    case Pool2dIndex::kNone:
      break;
  }
  return 0;
}

// A tensor of the layer's input size, or of its output size.
bool view_fits(const TensorView& view, const Pool2dProblem& problem, bool large, int vector,
               int element_bytes) {
  return channels_align(view, problem.n, large ? problem.h : problem.p, large ? problem.w : problem.q, vector,
                        element_bytes);
}

}  // namespace

bool pool2d_vectors_fit(const Pool2dCall& call) {
  const Pool2dProblem& problem = call.problem;
  const int bytes = dtype_size(call.dtype);
  const int vector = 16 / bytes;
  if (problem.c % vector != 0) return false;
  const bool walks_input = pool2d_walks_input(call.op);
  return view_fits(call.input, problem, !walks_input, vector, bytes) &&
         view_fits(call.output, problem, walks_input, vector, bytes) &&
         (call.index == Pool2dIndex::kNone ||
          view_fits(call.indices, problem, false, vector, static_cast<int>(index_bytes(call.index))));
}

bool pool2d_planes_fit(const Pool2dCall& call) {
  const Pool2dProblem& problem = call.problem;
  const auto fits = [&](const TensorView& view, int h, int w) {
    return dense_planes(view, problem.n, problem.c, h, w);
  };
  const bool walks_input = pool2d_walks_input(call.op);
  const TensorView& large = walks_input ? call.output : call.input;
  const TensorView& small = walks_input ? call.input : call.output;
  return fits(large, problem.h, problem.w) && fits(small, problem.p, problem.q) &&
         (call.index == Pool2dIndex::kNone || fits(call.indices, problem.p, problem.q));
}

int pool2d_common_kernel(const Pool2dProblem& problem) {
  const bool plain = !problem.adaptive && problem.dilation_h == 1 && problem.dilation_w == 1 &&
                     problem.kernel_h == problem.kernel_w && problem.stride_h == problem.stride_w;
  const int kernel = problem.kernel_h;
  const int stride = problem.stride_h;
  return plain && ((kernel == 2 && stride == 2) || (kernel == 3 && (stride == 1 || stride == 2))) ? kernel
                                                                                                  : 0;
}

Pool2dPlan plan_pool2d(const Pool2dCall& call, const Chip& chip) {
  for (const auto& plan_path :
       {plan_global_pool2d, plan_window_pool2d, plan_strip_pool2d, plan_plane_pool2d, plan_tile_pool2d}) {
    if (const std::optional<Pool2dPlan> plan = plan_path(call, chip)) return *plan;
  }
  return plan_general_pool2d(call, chip);
}

Pool2dPlan plan_general_pool2d(const Pool2dCall& call, const Chip& chip) {
  return plan_general_pool2d(call.op, call.problem, call.dtype, call.channels_last, pool2d_vectors_fit(call),
                             chip);
}

Pool2dPlan plan_general_pool2d(Pool2dOp op, const Pool2dProblem& problem, DType dtype, bool channels_last,
                               bool vectors_fit, const Chip& chip) {
  const bool walks_input = pool2d_walks_input(op);
  const bool adaptive = problem.adaptive;
  int64_t taps = 1;
  if (walks_input) {
    const int64_t extent_h = int64_t{problem.dilation_h} * (problem.kernel_h - 1) + 1;
    const int64_t extent_w = int64_t{problem.dilation_w} * (problem.kernel_w - 1) + 1;
    taps = covering_length(adaptive, problem.h, problem.p, extent_h, problem.stride_h) *
           covering_length(adaptive, problem.w, problem.q, extent_w, problem.stride_w);
  } else if (op != Pool2dOp::kMaxGather) {
    taps = window_length(adaptive, problem.h, problem.p, problem.kernel_h) *
           window_length(adaptive, problem.w, problem.q, problem.kernel_w);
  }
  const int64_t elements = static_cast<int64_t>(problem.n) * problem.c *
                           (walks_input ? static_cast<int64_t>(problem.h) * problem.w
                                        : static_cast<int64_t>(problem.p) * problem.q);
  const int64_t widest = 16 / dtype_size(dtype);
  const bool can_vector =
      channels_last && vectors_fit && problem.c % widest == 0 && op != Pool2dOp::kMaxGather;

  Pool2dPlan plan;
  // With channels innermost, threads side by side read side by side whatever the window: sharing a window
  // only helps where there are too few outputs to fill the chip. With columns innermost it also makes the
  // reads of a window coalesce.
  const bool few = elements / (can_vector ? widest : 1) < int64_t{chip.sm_count} * 1024;
  const bool split = taps >= kSplitFromTaps && (!channels_last || few);
  const char* which = walks_input ? "windows per input" : "taps per window";
  if (split) {
    const int64_t lanes = channels_last ? std::min<int64_t>(32, power_of_two_up(problem.c)) : 1;
    const int64_t splits = std::min(power_of_two_up(ceil_div(taps, kTapsPerSplit)),
                                    (channels_last ? kPoolSplitThreads : kPoolThreads) / lanes);
    const int64_t outputs = channels_last ? lanes : kPoolThreads / splits;
    plan.splits = static_cast<int>(splits);
    plan.outputs_per_block = static_cast<int>(outputs);
    plan.threads = static_cast<int>(splits * outputs);
    plan.shared_bytes = pool2d_split_bytes(dtype == DType::kFloat64 ? 8 : 4, op == Pool2dOp::kMaxFprop);
    plan.items = elements;
    plan.tile = std::to_string(splits) + " threads share one output; " + std::to_string(outputs) +
                " outputs per block";
    plan.reason = std::to_string(taps) + " " + which + ": too many for one thread";
  } else {
    plan.vector = can_vector ? static_cast<int>(widest) : 1;
    plan.items = elements / plan.vector;
    // Small problems spread over the chip in smaller blocks.
    int64_t threads = kPoolThreads;
    while (threads > kMinThreads && ceil_div(plan.items, threads) < chip.sm_count) threads /= 2;
    plan.threads = plan.outputs_per_block = static_cast<int>(threads);
    plan.tile = "one thread: " + std::to_string(plan.vector) + (plan.vector == 1 ? " channel" : " channels") +
                " of one " + (walks_input ? "input" : "output");
    plan.reason = std::to_string(taps) + " " + which;
    if (op == Pool2dOp::kMaxGather) {
      plan.reason = "one read at an index per output";
    } else if (can_vector) {
      plan.reason += "; NHWC with whole aligned groups of channels: 16-byte accesses";
    } else if (!channels_last) {
      plan.reason += "; NCHW: neighbouring threads hold neighbouring columns";
    } else {
      plan.reason += "; NHWC whose channels do not fall into aligned 16-byte groups: one element per access";
    }
  }
  plan.kernel = kernel_name(op, split);
  plan.items_per_launch = kItemsPerLaunch;
  plan.grid = ceil_div(plan.items, plan.outputs_per_block);
  return plan;
}

}  // namespace fastcnn
