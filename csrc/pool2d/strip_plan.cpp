#include <algorithm>

#include "common/ceil_div.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// Strips may read this part of their input twice, at the rows where they meet.
constexpr int64_t kSharedRows = 16;
constexpr int kFewestRows = 4;

int64_t even_up(int64_t x) {
  return x + x % 2;
}

}  // namespace

Pool2dProblem pool2d_strip_problem(const Pool2dProblem& problem) {
  const int dilation = problem.dilation_h;
  const auto whole = [&](int input, int output, int stride, int pad) {
    return stride == 1 && input % dilation == 0 && output % dilation == 0 && pad % dilation == 0;
  };
  if (problem.adaptive || dilation == 1 || dilation != problem.dilation_w ||
      !whole(problem.h, problem.p, problem.stride_h, problem.pad_h) ||
      !whole(problem.w, problem.q, problem.stride_w, problem.pad_w) ||
      int64_t{problem.n} * dilation * dilation >= int64_t{1} << 31) {
    return problem;
  }
  Pool2dProblem phase = problem;
  phase.n *= dilation * dilation;
  for (int* size : {&phase.h, &phase.w, &phase.p, &phase.q, &phase.pad_h, &phase.pad_w}) *size /= dilation;
  phase.dilation_h = phase.dilation_w = 1;
  return phase;
}

std::optional<Pool2dPlan> plan_strip_pool2d(const Pool2dCall& call, const Chip& chip) {
  const Pool2dProblem problem = pool2d_strip_problem(call.problem);
  const bool walks_input = pool2d_walks_input(call.op);
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  const int kernel = pool2d_common_kernel(problem);
  const int stride = problem.stride_h;
  const bool index_fits =
      call.index == Pool2dIndex::kUint8Offset || (call.index == Pool2dIndex::kNone && !walks_input);
  if (call.op == Pool2dOp::kMaxGather || call.dtype == DType::kFloat64 || !call.channels_last ||
      kernel != 3 || (maximum && !index_fits) || !pool2d_vectors_fit(call)) {
    return std::nullopt;
  }
  // Offsets in a row are counted in 32 bits.
  for (const TensorView* view : {&call.input, &call.output, &call.indices}) {
    if (std::max(call.problem.w, call.problem.q) * view->stride_w >= int64_t{1} << 30) return std::nullopt;
  }

  const int64_t rows = walks_input ? problem.h : problem.p;
  const int64_t columns = walks_input ? problem.w : problem.q;
  const int64_t vector = 16 / dtype_size(call.dtype);
  const int64_t vectors = problem.c / vector;

  // Whole rows if four vectors (64 bytes) of channels still fit side by side.
  Pool2dPlan plan;
  int64_t tiles = 1;
  while (kStripThreads / ceil_div(columns, tiles) < std::min<int64_t>(vectors, 4)) ++tiles;
  const int64_t block_columns = ceil_div(columns, tiles);
  int64_t lanes = std::min({vectors, kStripThreads / block_columns, int64_t{kStripLanes}});
  const int64_t chunks = ceil_div(vectors, lanes);
  lanes = ceil_div(vectors, chunks);
  // Whole 32-byte sectors, where there is room.
  if (chunks > 1 && even_up(lanes) <= kStripLanes && even_up(lanes) * block_columns <= kStripThreads) {
    lanes = even_up(lanes);
  }

  // Strips short enough to fill the chip, long enough to share few rows; shorter only to reach every SM.
  const int64_t shared_rows = kernel - stride;
  const int64_t strip_rows = shared_rows * kSharedRows * (walks_input ? stride : 1) / stride;
  const int64_t per_strip = problem.n * ceil_div(vectors, lanes) * tiles;
  int64_t strips = 1;
  while (per_strip * strips < 4 * chip.sm_count && ceil_div(rows, 2 * strips) >= strip_rows) strips *= 2;
  while (per_strip * strips < chip.sm_count && ceil_div(rows, 2 * strips) >= kFewestRows) strips *= 2;
  plan.block_rows = static_cast<int>(ceil_div(rows, strips));
  strips = ceil_div(rows, plan.block_rows);
  if (per_strip * strips >= int64_t{1} << 31) return std::nullopt;

  plan.path = Pool2dPath::kStrip;
  plan.block_columns = static_cast<int>(block_columns);
  plan.lanes = static_cast<int>(lanes);
  plan.vector = static_cast<int>(vector);
  plan.threads = static_cast<int>(ceil_div(block_columns * lanes, 32) * 32);
  plan.shared_bytes =
      walks_input ? strip_bprop_bytes(dtype_size(call.dtype), maximum) : strip_fprop_bytes(stride);
  plan.items = static_cast<int64_t>(problem.n) * vectors * rows * columns;
  plan.grid = per_strip * strips;
  plan.kernel =
      std::string("pool2d::strip_") + (maximum ? "max_" : "average_") + (walks_input ? "bprop" : "fprop");
  plan.tile = std::to_string(plan.block_rows) + " x " + std::to_string(plan.block_columns) +
              (walks_input ? " inputs of " : " outputs of ") + std::to_string(lanes * vector) +
              " channels; one thread walks down a column of " + std::to_string(vector) + " channels";
  plan.reason = (call.problem.dilation_h > 1 ? "each phase of the dilation alone: " : "") +
                std::string("3x3 windows at stride ") + std::to_string(stride) +
                " overlap; NHWC with whole aligned groups of channels: rows pass once through shared memory";
  return plan;
}

}  // namespace fastcnn
