#include <algorithm>

#include "conv2d/depthwise_axis_plan.h"
#include "conv2d/depthwise_shape.h"

namespace fastcnn {
namespace {

using namespace depthwise;

constexpr int64_t kFewestThreads = 128;  // of a block, where the image has work for them
constexpr int64_t kPixelBytes = 64;      // side by side, where the tensor has them
// Where dilation leaves each class so few targets that less than this part of what threads make exists, the
// kernel for every shape takes fewer instructions: by the machine code 72 an output at 3x3, 8 a tap.
constexpr double least_useful(int kernel) {
  return kernel == 3 ? 0.3 : 0.2;
}
// Strips may read this part of their source twice.
constexpr int64_t kSharedRows = 16;

// A block's threads: vectors of 16 bytes of channels x groups of columns x teams of rows.
struct StripBlock {
  int64_t vectors = 0, groups = 0, teams = 0;
  int64_t ring_rows = 0;
  int64_t tile_columns = 0;
};

class StripChoice {
 public:
  StripChoice(const DepthwiseThreadShape& shape, int bytes, int channels, const DepthwiseAxis& rows,
              const DepthwiseAxis& columns)
      : shape_(shape),
        lanes_per_vector_(16 / bytes / kDepthwiseStripVector),
        vectors_(channels * bytes / 16) {
    row_groups_ = ceil_div(class_targets(rows), shape.rows);
    column_groups_ = ceil_div(class_targets(columns), shape.columns);
    source_rows_ = ceil_div(rows.source, rows.dilation.divisor());
  }

  int64_t vectors() const { return vectors_; }
  int64_t threads(const StripBlock& block) const {
    return block.vectors * lanes_per_vector_ * block.groups * block.teams;
  }

  // Whether the block fits; sets what follows from its threads.
  bool fits(StripBlock& block) const {
    block.tile_columns = shape_.sources(static_cast<int>(block.groups) * shape_.columns);
    const int64_t step = shape_.advance(shape_.rows) * block.teams;
    const int64_t halo = shape_.sources(shape_.rows) - shape_.advance(shape_.rows);
    block.ring_rows = std::max<int64_t>(shape_.sources(shape_.rows), std::min(source_rows_, 2 * step + halo));
    return block.vectors * 16 <= kDepthwisePixelBytes &&
           threads(block) <= depthwise_strip_threads(shape_.kernel) &&
           block.ring_rows * depthwise_strip_pixel(shape_, static_cast<int>(block.tile_columns)) *
                   block.vectors * 16 <=
               depthwise_strip_bytes(shape_.kernel);
  }

  // The block whose threads have most to do: channels in even parts, runs of at least kPixelBytes, whole rows
  // if they fit, enough threads.
  StripBlock best() const {
    StripBlock best;
    double best_worth = 0;
    for (int64_t vectors = 1; vectors <= std::min<int64_t>(vectors_, kDepthwisePixelBytes / 16); ++vectors) {
      StripBlock block;
      block.vectors = vectors;
      block.groups = column_groups_;
      block.teams = 1;
      for (int64_t tiles = 2; block.groups > 1 && !fits(block); ++tiles) {
        block.groups = ceil_div(column_groups_, tiles);
      }
      if (!fits(block)) continue;
      while (threads(block) < kFewestThreads && 2 * block.teams <= row_groups_) {
        StripBlock more = block;
        more.teams *= 2;
        if (!fits(more)) break;
        block = more;
      }
      const double worth = usefulness(block);
      if (worth > best_worth) {
        best = block;
        best_worth = worth;
      }
    }
    return best;
  }

 private:
  double usefulness(const StripBlock& block) const {
    const auto part = [](double useful, int64_t whole) { return useful / static_cast<double>(whole); };
    const int64_t warps = ceil_div(threads(block), 32);
    const double busy_lanes = part(vectors_, ceil_div(vectors_, block.vectors) * block.vectors) *
                              part(column_groups_, ceil_div(column_groups_, block.groups) * block.groups) *
                              part(row_groups_, ceil_div(row_groups_, block.teams) * block.teams) *
                              part(threads(block), 32 * warps);
    const int64_t run = std::min(block.vectors * 16, kPixelBytes);
    const int64_t tile = shape_.advance(static_cast<int>(block.groups) * shape_.columns);
    return busy_lanes * part(tile, block.tile_columns) * part(run, kPixelBytes) *
           part(std::min(threads(block), kFewestThreads) + kFewestThreads, 2 * kFewestThreads);
  }

  DepthwiseThreadShape shape_;
  int64_t lanes_per_vector_;
  int64_t vectors_;
  int64_t row_groups_ = 0;
  int64_t column_groups_ = 0;
  int64_t source_rows_ = 0;
};

}  // namespace

std::optional<DepthwiseImagePlan> plan_depthwise_strip(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const int bytes = dtype_size(params.dtype);
  const int vector = 16 / bytes;
  const DepthwiseTensors tensors = tensors_of(pass, params);
  const auto step = common_step(pass, problem);
  if (!step || problem.c % vector != 0) return std::nullopt;
  DepthwiseAxis rows = rows_of(pass, problem), columns = columns_of(pass, problem);
  if (!channels_align(tensors.source, problem.n, rows.source, columns.source, vector, bytes) ||
      !channels_align(tensors.target, problem.n, rows.target, columns.target, vector, bytes)) {
    return std::nullopt;
  }
  // Offsets within a row are counted in 32 bits.
  for (const int64_t row :
       {columns.source * tensors.source.stride_w, columns.target * tensors.target.stride_w,
        int64_t{rows.source} * rows.dilation.divisor(),
        int64_t{columns.source} * columns.dilation.divisor()}) {
    if (row >= int64_t{1} << 30) return std::nullopt;
  }

  const DepthwiseThreadShape shape = depthwise_strip_shape(problem.r, *step);
  if (std::max(rows.classes, columns.classes) > 1 &&
      useful_part(rows, shape.rows) * useful_part(columns, shape.columns) < least_useful(problem.r)) {
    return std::nullopt;
  }
  const StripChoice choice(shape, bytes, problem.c, rows, columns);
  const StripBlock block = choice.best();
  if (block.vectors == 0) return std::nullopt;

  DepthwiseImagePlan plan;
  plan.path = DepthwiseImagePath::kStrip;
  plan.step = *step;
  set_block(columns, block.groups * shape.columns);
  // Strips short enough to fill the chip, long enough to share few rows; shorter only to reach every SM.
  const int64_t chunks = ceil_div(choice.vectors(), block.vectors);
  const int64_t images =
      int64_t{problem.n} * chunks * columns.blocks.divisor() * columns.classes * rows.classes;
  const int64_t team_rows = block.teams * shape.rows;
  const int64_t steps = ceil_div(class_targets(rows), team_rows);
  const int64_t halo = shape.sources(shape.rows) - shape.advance(shape.rows);
  const int64_t long_steps = ceil_div(kSharedRows * halo, shape.advance(static_cast<int>(team_rows)));
  int64_t strips = 1;
  while (images * strips < 4 * chip.sm_count && steps >= 2 * strips * long_steps) strips *= 2;
  while (images * strips < chip.sm_count && steps >= 4 * strips) strips *= 2;
  set_block(rows, ceil_div(steps, strips) * team_rows);
  plan.grid = images * rows.blocks.divisor();
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;

  const int64_t block_channels = block.vectors * vector;
  plan.threads = static_cast<int>(ceil_div(choice.threads(block), 32) * 32);
  plan.shared_bytes = depthwise_strip_shared_bytes(shape.kernel);
  plan.strip.image = image_of(pass, problem, *step, rows, columns);
  plan.strip.block_channels = static_cast<int>(block_channels);
  plan.strip.teams = static_cast<int>(block.teams);
  plan.strip.tile_columns = static_cast<int>(block.tile_columns);
  plan.strip.chunks = FastDiv(static_cast<int>(chunks));
  plan.strip.lanes = FastDiv(static_cast<int>(block_channels / kDepthwiseStripVector));
  plan.strip.groups = FastDiv(static_cast<int>(block.groups));
  plan.strip.vectors = FastDiv(static_cast<int>(block.vectors));
  plan.strip.ring_rows = FastDiv(static_cast<int>(block.ring_rows));

  const std::string side = std::to_string(problem.r);
  plan.kernel = std::string("depthwise_strip_") + (dgrad ? "dgrad" : "fprop");
  plan.tile = std::to_string(rows.block) + " x " + std::to_string(columns.block) + " outputs of " +
              std::to_string(block_channels) + " channels, " + std::to_string(team_rows) +
              " rows a step; a thread makes " + std::to_string(shape.rows) + " x " +
              std::to_string(shape.columns) + " of 2 channels";
  plan.reason = side + "x" + side +
                " taps, one filter a channel, NHWC with whole aligned groups of channels: " +
                "rows pass once through shared memory, weights stay in registers";
  return plan;
}

}  // namespace fastcnn
