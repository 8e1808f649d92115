#include <algorithm>

#include "common/ceil_div.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// Tiles smaller than this spend too much on the neighbours that share their first and last 16 bytes.
constexpr int64_t kSmallestBytes = 2048;
// A thread's rows at least, where windows overlap: it starts by repeating the rows that it shares.
constexpr int64_t kFewestRows = 4;
// Strips of a plane may read this part of their input twice.
constexpr int64_t kSharedRows = 16;
// Outputs of a tile at least, where one thread visits a whole window.
constexpr int64_t kFewestItems = 32;

}  // namespace

std::optional<Pool2dPlan> plan_tile_pool2d(const Pool2dCall& call, const Chip& chip) {
  const Pool2dProblem& problem = call.problem;
  const bool walks_input = pool2d_walks_input(call.op);
  const bool maximum = call.op == Pool2dOp::kMaxFprop || call.op == Pool2dOp::kMaxBprop;
  const bool index_fits =
      call.index == Pool2dIndex::kUint8Offset || (call.index == Pool2dIndex::kNone && !walks_input);
  if (call.op == Pool2dOp::kMaxGather || call.dtype == DType::kFloat64 || call.channels_last ||
      (maximum && !index_fits) || !pool2d_planes_fit(call)) {
    return std::nullopt;
  }
  const int64_t kernel = pool2d_common_kernel(problem);
  const int64_t stride = problem.stride_h;
  const int64_t bytes = dtype_size(call.dtype);
  const bool even = kernel == 0 || stride == 1;
  const int64_t large_room = kTileLargeBytes / bytes;
  const int64_t small_room = pool2d_tile_small_bytes(even) / bytes;
  const int64_t planes = static_cast<int64_t>(problem.n) * problem.c;
  const int64_t large_plane = static_cast<int64_t>(problem.h) * problem.w;
  const int64_t small_plane = static_cast<int64_t>(problem.p) * problem.q;
  const int64_t rows = walks_input ? problem.h : problem.p;
  const int64_t columns = walks_input ? problem.w : problem.q;
  if (small_plane == 0) return std::nullopt;

  Pool2dPlan plan;
  int64_t block_rows = rows;
  int64_t block_planes = std::min({large_room / large_plane, small_room / small_plane, planes});
  const bool rows_first = kernel == 0 && call.op == Pool2dOp::kMaxFprop;
  if (rows_first) block_planes = std::min(block_planes, large_room / (int64_t{problem.h} * problem.q));
  if (block_planes > 0) {
    // Fewer planes where that gives more SMs work.
    const int64_t enough = ceil_div(kSmallestBytes, large_plane * bytes);
    block_planes = std::min(block_planes, std::max(enough, planes / (4 * chip.sm_count)));
    if (kernel == 0 && block_planes * rows * columns < kFewestItems) return std::nullopt;
  } else {
    // A strip of one plane: as many rows as both tensors have room for.
    if (kernel == 0) return std::nullopt;
    if (walks_input) {
      const int64_t window_rows = small_room / problem.q - 2;  // block_rows / stride and two at the ends
      block_rows = std::min(large_room / problem.w, window_rows * stride);
    } else {
      const int64_t input_rows = large_room / problem.w;
      block_rows = std::min((input_rows - kernel) / stride + 1, small_room / problem.q);
    }
    if (block_rows < kFewestRows) return std::nullopt;
    block_rows = ceil_div(rows, ceil_div(rows, std::min(block_rows, rows)));
    block_planes = 1;
    const int64_t shared_rows = kernel - stride;
    const int64_t strip_rows =
        std::max<int64_t>(8, shared_rows * kSharedRows * (walks_input ? stride : 1) / stride);
    while (planes * ceil_div(rows, block_rows) < 4 * chip.sm_count && block_rows / 2 >= strip_rows) {
      block_rows = ceil_div(block_rows, 2);
    }
  }
  const int64_t strips = ceil_div(rows, block_rows);
  plan.grid = ceil_div(planes, block_planes) * strips;
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;

  const int64_t fewest = kernel == 0 || kernel == stride ? 1 : kFewestRows;
  const int64_t segment = ceil_div(block_planes * block_rows * columns, kTileThreads);
  plan.segment_rows = static_cast<int>(std::min(block_rows, std::max(segment, fewest)));
  const int64_t items = block_planes * columns * ceil_div(block_rows, plan.segment_rows);
  plan.path = Pool2dPath::kTile;
  plan.block_planes = static_cast<int>(block_planes);
  plan.block_rows = static_cast<int>(block_rows);
  plan.threads = static_cast<int>(std::clamp<int64_t>(ceil_div(items, 32) * 32, 64, kTileThreads));
  plan.shared_bytes = pool2d_tile_bytes(static_cast<int>(bytes), even, maximum) +
                      (rows_first ? pool2d_tile_rows_bytes(static_cast<int>(bytes)) : 0);
  plan.items = planes * rows * columns;
  plan.kernel =
      std::string("pool2d::tile_") + (maximum ? "max_" : "average_") + (walks_input ? "bprop" : "fprop");
  plan.tile = (strips > 1 ? std::to_string(block_rows) + " rows of one plane"
                          : std::to_string(block_planes) + (block_planes == 1 ? " plane" : " planes")) +
              "; one thread walks down " + std::to_string(plan.segment_rows) +
              (plan.segment_rows == 1 ? " row" : " rows") + " of a column";
  plan.reason = "dense NCHW: each tile is one run of bytes, moved 16 at a time through shared memory; ";
  if (kernel == 0) {
    plan.reason += rows_first ? "windows of any kind, rows first, then columns" : "windows of any kind";
  } else {
    const std::string side = std::to_string(kernel);
    plan.reason += side + "x" + side + " windows at stride " + std::to_string(stride);
  }
  return plan;
}

}  // namespace fastcnn
