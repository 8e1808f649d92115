#include <algorithm>

#include "common/dense_planes.h"
#include "conv2d/depthwise_axis_plan.h"
#include "conv2d/depthwise_shape.h"

namespace fastcnn {
namespace {

using namespace depthwise;

// Tiles shorter than this spend too much on the neighbours that share their first and last 16 bytes.
constexpr int64_t kRunBytes = 2048;
// Rows of this many bytes are worth leaving out where a stride has a factor in common with the dilation.
constexpr int64_t kRowBytes = 128;
// Where less than this part of what threads make exists, the kernel for every shape takes fewer instructions
// (by the machine code, 209 for a target at 3x3).
constexpr double kLeastUseful = 0.1;
// Parts of rows take more instructions than a run: as if they read so many times what they do.
constexpr double kRowsCost = 1.07;
// Tiles may read this many times their sources.
constexpr double kMostRead = 1.5;

// What a block takes: planes, and of each so many threads one above the other and side by side in a class.
struct TileBlock {
  bool by_rows = false;
  int64_t planes = 1;
  int64_t row_groups = 0;
  int64_t groups = 0;
};

class TileChoice {
 public:
  TileChoice(const DepthwiseThreadShape& shape, int bytes, const DepthwiseAxis& rows,
             const DepthwiseAxis& columns)
      : shape_(shape), vector_(16 / bytes), rows_(rows), columns_(columns) {
    row_groups_ = ceil_div(class_targets(rows), shape.rows);
    column_groups_ = ceil_div(class_targets(columns), shape.columns);
    source_rows_ = ceil_div(rows.source, rows.dilation.divisor());
  }

  int64_t class_pitch(const TileBlock& block) const {
    return ceil_div(seen(columns_, block.groups * shape_.columns), columns_.dilation.divisor()) | 1;
  }
  int64_t pitch(const TileBlock& block) const { return class_pitch(block) * columns_.dilation.divisor(); }
  int64_t threads(const TileBlock& block) const {
    return block.planes * block.row_groups * block.groups * columns_.classes *
           (block.by_rows ? 1 : rows_.classes);
  }
  int64_t source_columns(const TileBlock& block) const {
    return std::min<int64_t>(columns_.source, seen(columns_, block.groups * shape_.columns));
  }
  int64_t target_columns(const TileBlock& block) const {
    return std::min<int64_t>(block.groups * shape_.columns * columns_.classes, columns_.target);
  }
  // Pieces of 16 bytes that so many columns may touch.
  int row_vectors(int64_t columns) const {
    return static_cast<int>(ceil_div(columns + vector_ - 1, vector_));
  }

  bool fits(const TileBlock& block) const {
    return threads(block) <= kDepthwiseTileThreads &&
           block.planes * tile_rows(block) * pitch(block) <= kDepthwiseTileFloats &&
           block.planes * target_rows(block) * target_columns(block) <= kDepthwiseTileFloats;
  }

  TileBlock whole_plane() const {
    TileBlock block;
    block.row_groups = row_groups_;
    block.groups = column_groups_;
    return block;
  }

  // Of a plane that is too large, the part that reads least; no rows where none fits.
  TileBlock best_part() const {
    TileBlock best;
    double least = kMostRead;
    for (int64_t groups = std::min<int64_t>(column_groups_, kDepthwiseTileThreads); groups > 0; --groups) {
      // Parts of a row are equal, but for the last one.
      if (ceil_div(column_groups_, ceil_div(column_groups_, groups)) != groups) continue;
      TileBlock block;
      block.groups = groups;
      block.by_rows = groups < column_groups_ || rows_.classes > 1 || rows_.dilation.divisor() > 1;
      block.row_groups = std::min(row_groups_, kDepthwiseTileThreads / (groups * columns_.classes));
      while (block.row_groups > 0 && !fits(block)) --block.row_groups;
      if (block.row_groups == 0) continue;
      block.row_groups = ceil_div(row_groups_, ceil_div(row_groups_, block.row_groups));
      const double cost = read(block) * (block.by_rows ? kRowsCost : 1);
      if (cost < least) {
        best = block;
        least = cost;
      }
    }
    return best;
  }

 private:
  // Sources from the first to the last that so many targets of each class see.
  int64_t seen(const DepthwiseAxis& axis, int64_t targets) const {
    int rest;
    return axis.offset(axis.classes - 1, rest) +
           int64_t{axis.dilation.divisor()} * (shape_.sources(static_cast<int>(targets)) - 1) + 1;
  }
  int64_t tile_rows(const TileBlock& block) const {
    const int64_t targets = block.row_groups * shape_.rows;
    if (block.by_rows) {
      return std::min<int64_t>(source_rows_, shape_.sources(static_cast<int>(targets)));
    }
    return block.planes > 1 ? rows_.source : std::min<int64_t>(rows_.source, seen(rows_, targets));
  }
  int64_t target_rows(const TileBlock& block) const {
    const int64_t targets = block.row_groups * shape_.rows;
    return block.by_rows ? targets : std::min<int64_t>(targets * rows_.classes, rows_.target);
  }
  // The part of the sources of a class of rows that its blocks read, halos and whole vectors included.
  double read(const TileBlock& block) const {
    const int64_t columns = source_columns(block) + (block.by_rows ? vector_ - 1 : 0);
    return static_cast<double>(tile_rows(block) * ceil_div(row_groups_, block.row_groups) * columns *
                               ceil_div(column_groups_, block.groups)) /
           static_cast<double>(source_rows_ * columns_.source);
  }

  DepthwiseThreadShape shape_;
  int64_t vector_;
  const DepthwiseAxis& rows_;
  const DepthwiseAxis& columns_;
  int64_t row_groups_ = 0;
  int64_t column_groups_ = 0;
  int64_t source_rows_ = 0;  // of a class
};

}  // namespace

std::optional<DepthwiseImagePlan> plan_depthwise_tile(Conv2dPass pass, const Conv2dParams& params,
                                                      const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  const DepthwiseTensors tensors = tensors_of(pass, params);
  const auto step = common_step(pass, problem);
  DepthwiseAxis rows = rows_of(pass, problem), columns = columns_of(pass, problem);
  const int64_t planes = int64_t{problem.n} * problem.c;
  if (!step || planes >= int64_t{1} << 30 ||
      !dense_planes(tensors.source, problem.n, problem.c, rows.source, columns.source) ||
      !dense_planes(tensors.target, problem.n, problem.c, rows.target, columns.target)) {
    return std::nullopt;
  }

  // Offsets within an axis are counted in 32 bits.
  for (const DepthwiseAxis& axis : {rows, columns}) {
    const int64_t dilation = std::max(axis.dilation.divisor(), axis.classes);
    if (axis.source + int64_t{2} * axis.target + 32 * dilation * problem.r +
            int64_t{axis.classes} * axis.offset_step >=
        int64_t{1} << 30) {
      return std::nullopt;
    }
  }
  const DepthwiseThreadShape shape = depthwise_tile_shape(problem.r, *step);
  if (std::max(rows.classes, columns.classes) > 1 &&
      useful_part(rows, shape.rows) * useful_part(columns, shape.columns) < kLeastUseful) {
    return std::nullopt;
  }
  const TileChoice choice(shape, bytes, rows, columns);
  TileBlock block = choice.whole_plane();
  const bool skips_rows = pass == Conv2dPass::kFprop && rows.classes < rows.dilation.divisor() &&
                          int64_t{columns.source} * bytes >= kRowBytes;
  if (skips_rows || !choice.fits(block)) {
    block = choice.best_part();
    if (block.row_groups == 0) return std::nullopt;
  } else {
    // Several planes where they are small: as many as leave every SM two blocks, but runs of some length.
    const int64_t plane_bytes = bytes * int64_t{rows.source} * columns.source;
    const int64_t wanted =
        std::min({planes, std::max(ceil_div(kRunBytes, plane_bytes), planes / (2 * chip.sm_count)),
                  int64_t{kDepthwiseTilePlanes}});
    for (TileBlock more = block; block.planes < wanted; block = more) {
      ++more.planes;
      if (!choice.fits(more)) break;
    }
  }
  set_block(rows, block.row_groups * shape.rows);
  set_block(columns, block.groups * shape.columns);

  DepthwiseImagePlan plan;
  plan.path = DepthwiseImagePath::kTile;
  plan.step = *step;
  plan.grid = ceil_div(planes, block.planes) * rows.blocks.divisor() * (block.by_rows ? rows.classes : 1) *
              columns.blocks.divisor();
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;
  plan.threads = static_cast<int>(ceil_div(choice.threads(block), 32) * 32);
  plan.shared_bytes = depthwise_tile_bytes(problem.r);
  DepthwiseTileParams& tile = plan.tile_params;
  tile.image = image_of(pass, problem, *step, rows, columns);
  tile.planes = static_cast<int>(planes);
  tile.block_planes = static_cast<int>(block.planes);
  tile.by_rows = block.by_rows;
  tile.class_pitch = static_cast<int>(choice.class_pitch(block));
  tile.pitch = static_cast<int>(choice.pitch(block));
  tile.groups = FastDiv(static_cast<int>(block.groups));
  tile.row_classes = FastDiv(block.by_rows ? 1 : rows.classes);
  tile.row_groups = FastDiv(static_cast<int>(block.row_groups));
  tile.row_dilation = FastDiv(block.by_rows ? 1 : rows.dilation.divisor());
  tile.dilated = tile.row_classes.divisor() > 1 || tile.row_dilation.divisor() > 1 || columns.classes > 1 ||
                 columns.dilation.divisor() > 1;
  tile.source_columns = FastDiv(columns.source);
  tile.source_vectors = FastDiv(block.by_rows ? choice.row_vectors(choice.source_columns(block)) : 1 << 30);
  tile.target_vectors = FastDiv(choice.row_vectors(choice.target_columns(block)));
  tile.channels = FastDiv(problem.c);

  const std::string side = std::to_string(problem.r);
  plan.kernel = std::string("depthwise_tile_") + (pass == Conv2dPass::kDgrad ? "dgrad" : "fprop");
  const bool whole = rows.blocks.divisor() == 1 && !block.by_rows;
  const std::string part = std::to_string(rows.block) + (block.by_rows ? " x " : " rows") +
                           (block.by_rows ? std::to_string(choice.target_columns(block)) : "") +
                           " of one plane";
  plan.tile = (whole ? std::to_string(block.planes) + (block.planes == 1 ? " plane" : " planes") : part) +
              "; a thread makes " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
  plan.reason = side + "x" + side + " taps, one filter a channel, dense NCHW: " +
                (block.by_rows ? "parts of rows" : "each tile is one run of bytes") +
                ", moved 16 at a time through shared memory; weights stay in registers";
  return plan;
}

}  // namespace fastcnn
