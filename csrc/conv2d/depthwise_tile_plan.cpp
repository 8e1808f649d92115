#include <algorithm>

#include "common/dense_planes.h"
#include "conv2d/depthwise_axis_plan.h"
#include "conv2d/depthwise_shape.h"

namespace fastcnn {
namespace {

using namespace depthwise;

// Tiles shorter than this spend too much on the neighbours that share their first and last 16 bytes.
constexpr int64_t kRunBytes = 2048;

// What a block takes: planes, and of each so many threads one above the other.
struct TileBlock {
  int64_t planes = 1;
  int64_t row_groups = 1;
};

}  // namespace

std::optional<DepthwiseImagePlan> plan_depthwise_tile(Conv2dPass pass, const Conv2dParams& params,
                                                      const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const DepthwiseTensors tensors = tensors_of(pass, params);
  const auto step = common_step(pass, problem);
  DepthwiseAxis rows = rows_of(pass, problem), columns = columns_of(pass, problem);
  const int64_t planes = int64_t{problem.n} * problem.c;
  if (!step || problem.dilation_h != 1 || problem.dilation_w != 1 || planes >= int64_t{1} << 30 ||
      !dense_planes(tensors.source, problem.n, problem.c, rows.source, columns.source) ||
      !dense_planes(tensors.target, problem.n, problem.c, rows.target, columns.target)) {
    return std::nullopt;
  }

  const DepthwiseThreadShape shape = depthwise_tile_shape(problem.r, *step);
  const int64_t groups = ceil_div(class_targets(columns), shape.columns);
  const int64_t row_groups = ceil_div(class_targets(rows), shape.rows);
  if (groups > kDepthwiseTileThreads) return std::nullopt;
  const int64_t pitch = shape.sources(static_cast<int>(groups) * shape.columns) | 1;
  const auto fits = [&](const TileBlock& block) {
    const int64_t targets = block.row_groups * shape.rows;
    const int64_t sources = std::min<int64_t>(rows.source, shape.sources(static_cast<int>(targets)));
    return block.planes * groups * block.row_groups <= kDepthwiseTileThreads &&
           block.planes * (block.planes > 1 ? rows.source : sources) * pitch <= kDepthwiseTileFloats &&
           block.planes * std::min<int64_t>(targets, rows.target) * columns.target <= kDepthwiseTileFloats;
  };
  TileBlock block{1, std::min(row_groups, kDepthwiseTileThreads / groups)};
  while (block.row_groups > 1 && !fits(block)) --block.row_groups;
  if (!fits(block)) return std::nullopt;
  if (block.row_groups < row_groups) {
    block.row_groups = ceil_div(row_groups, ceil_div(row_groups, block.row_groups));
    // Short strips of wide images would read most rows several times.
    const int64_t halo = shape.sources(shape.rows) - shape.advance(shape.rows);
    if (shape.advance(static_cast<int>(block.row_groups) * shape.rows) < 2 * halo) return std::nullopt;
  } else {
    // Several planes where they are small: as many as leave every SM two blocks, but runs of some length.
    const int64_t plane_bytes = dtype_size(params.dtype) * int64_t{rows.source} * columns.source;
    const int64_t wanted =
        std::min({planes, std::max(ceil_div(kRunBytes, plane_bytes), planes / (2 * chip.sm_count)),
                  int64_t{kDepthwiseTilePlanes}});
    while (block.planes < wanted && fits({block.planes + 1, row_groups})) ++block.planes;
  }
  set_block(rows, block.row_groups * shape.rows);
  set_block(columns, groups * shape.columns);

  DepthwiseImagePlan plan;
  plan.path = DepthwiseImagePath::kTile;
  plan.step = *step;
  plan.grid = ceil_div(planes, block.planes) * rows.blocks.divisor();
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;
  plan.threads = static_cast<int>(ceil_div(block.planes * block.row_groups * groups, 32) * 32);
  plan.shared_bytes = depthwise_tile_bytes(problem.r);
  plan.tile_params.image = image_of(pass, problem, *step, rows, columns);
  plan.tile_params.planes = static_cast<int>(planes);
  plan.tile_params.block_planes = static_cast<int>(block.planes);
  plan.tile_params.pitch = static_cast<int>(pitch);
  plan.tile_params.groups = FastDiv(static_cast<int>(groups));
  plan.tile_params.row_groups = FastDiv(static_cast<int>(block.row_groups));
  plan.tile_params.source_columns = FastDiv(columns.source);
  plan.tile_params.channels = FastDiv(problem.c);

  const std::string side = std::to_string(problem.r);
  plan.kernel = std::string("depthwise_tile_") + (pass == Conv2dPass::kDgrad ? "dgrad" : "fprop");
  plan.tile = (rows.blocks.divisor() > 1
                   ? std::to_string(rows.block) + " rows of one plane"
                   : std::to_string(block.planes) + (block.planes == 1 ? " plane" : " planes")) +
              "; a thread makes " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
  plan.reason = side + "x" + side +
                " taps, one filter a channel, dense NCHW: each tile is one run of bytes, " +
                "moved 16 at a time through shared memory; weights stay in registers";
  return plan;
}

}  // namespace fastcnn
