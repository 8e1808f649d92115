#include <algorithm>

#include "conv2d/depthwise_axis_plan.h"

namespace fastcnn {
namespace {

using namespace depthwise;

// Fewer taps are as well served by L1, without the way through shared memory.
constexpr int64_t kFewestTaps = 24;
constexpr int64_t kVector = 4;  // channels of an access in NHWC
// Blocks are cut no lower than this many rows for the sake of SMs without one.
constexpr int64_t kFewestRows = 4 * kDepthwiseCellRows;

// Floats in 16-byte units, an odd number of them: lanes one row or plane apart read from different banks.
int64_t odd_units(int64_t floats) {
  return 4 * (ceil_div(floats, 4) | 1);
}

// What a block takes: rows x columns of targets of channels x images planes.
struct LargeBlock {
  int64_t rows = 0, columns = 0;
  int64_t channels = 1, images = 1;
};

class LargeChoice {
 public:
  LargeChoice(const Conv2dProblem& problem, const DepthwiseAxis& rows, const DepthwiseAxis& columns)
      : taps_h_(problem.r), taps_w_(problem.s) {
    rows_ = class_targets(rows);
    columns_ = class_targets(columns);
    source_rows_ = ceil_div(rows.source, rows.dilation.divisor());
    source_columns_ = ceil_div(columns.source, columns.dilation.divisor());
    weight_pitch = odd_units(ceil_div(taps_w_, 8) * 8);
    weight_plane = odd_units(taps_h_ * weight_pitch);
  }

  int64_t pitch(const LargeBlock& block) const {
    // A cell reads eight sources past its last whole eight taps.
    return odd_units(ceil_div(block.columns, kDepthwiseCellColumns) * kDepthwiseCellColumns +
                     taps_w_ / 8 * 8 + (taps_w_ % 8 == 0 ? 0 : 8));
  }
  int64_t tile_rows(const LargeBlock& block) const {
    return std::min(source_rows_, block.rows + taps_h_ - 1);
  }
  int64_t tile_columns(const LargeBlock& block) const {
    return std::min(source_columns_, block.columns + taps_w_ - 1);
  }
  int64_t plane(const LargeBlock& block) const { return odd_units(tile_rows(block) * pitch(block)); }
  int64_t floats(const LargeBlock& block) const {
    return block.channels * (weight_plane + block.images * plane(block));
  }
  int64_t plane_cells(const LargeBlock& block) const {
    return ceil_div(block.rows, kDepthwiseCellRows) * ceil_div(block.columns, kDepthwiseCellColumns);
  }
  bool whole(const LargeBlock& block) const { return block.rows == rows_ && block.columns == columns_; }

  // Sources that the tiles of a plane read.
  int64_t read(const LargeBlock& block) const {
    return tile_rows(block) * ceil_div(rows_, block.rows) * tile_columns(block) *
           ceil_div(columns_, block.columns);
  }

  // Of the tiles that fit, the one that reads least. No rows where none fits.
  LargeBlock best_tile(int64_t channels, int64_t capacity) const {
    LargeBlock best;
    int64_t least = 0;
    for (int64_t parts = 1; parts <= ceil_div(columns_, kDepthwiseCellColumns); parts *= 2) {
      LargeBlock block;
      block.channels = channels;
      block.columns =
          parts == 1 ? columns_
                     : ceil_div(ceil_div(columns_, kDepthwiseCellColumns), parts) * kDepthwiseCellColumns;
      block.rows = rows_;
      if (floats(block) > capacity) {
        const int64_t fit = (capacity / channels - weight_plane) / pitch(block) - 1 - (taps_h_ - 1);
        if (fit < kDepthwiseCellRows) continue;
        const int64_t cuts = ceil_div(rows_, fit / kDepthwiseCellRows * kDepthwiseCellRows);
        block.rows = ceil_div(ceil_div(rows_, kDepthwiseCellRows), cuts) * kDepthwiseCellRows;
      }
      if (best.rows == 0 || read(block) < least) {
        best = block;
        least = read(block);
      }
    }
    return best;
  }

  int64_t weight_pitch = 0;
  int64_t weight_plane = 0;

 private:
  int64_t taps_h_, taps_w_;
  int64_t rows_ = 0, columns_ = 0;
  int64_t source_rows_ = 0, source_columns_ = 0;
};

// Threads of a block: whole warps, many and with an even share of the cells.
int threads_for(int64_t cells) {
  if (cells <= kDepthwiseLargeThreads) return static_cast<int>(ceil_div(cells, 32) * 32);
  int best = 0;
  double best_worth = 0;
  for (int threads = kDepthwiseLargeThreads; threads >= kDepthwiseLargeThreads / 2; threads -= 32) {
    const double busy = static_cast<double>(cells) / static_cast<double>(ceil_div(cells, threads) * threads);
    const double worth = busy * (threads + kDepthwiseLargeThreads);
    if (worth > best_worth) {
      best = threads;
      best_worth = worth;
    }
  }
  return best;
}

// The tile and the shared memory for it: the small one, unless the large one saves a quarter of what is read.
struct LargeTile {
  LargeBlock block;
  int64_t capacity;
};

LargeTile choose_tile(const LargeChoice& choice, int64_t channels, const Chip& chip) {
  const int64_t capacity = kDepthwiseLargeFloats[0], more = kDepthwiseLargeFloats[1];
  const LargeBlock small = choice.best_tile(channels, capacity);
  if (chip.shared_bytes_per_block < 4 * more) return {small, capacity};
  const LargeBlock large = choice.best_tile(channels, more);
  const bool saves = small.rows == 0 || 4 * choice.read(large) <= 3 * choice.read(small);
  return large.rows != 0 && saves ? LargeTile{large, more} : LargeTile{small, capacity};
}

}  // namespace

std::optional<DepthwiseImagePlan> plan_depthwise_large(Conv2dPass pass, const Conv2dParams& params,
                                                       const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const int bytes = dtype_size(params.dtype);
  const DepthwiseTensors tensors = tensors_of(pass, params);
  DepthwiseAxis rows = rows_of(pass, problem), columns = columns_of(pass, problem);
  if (int64_t{problem.r} * problem.s < kFewestTaps ||
      step_of(dgrad, problem.stride_h, problem.dilation_h) != DepthwiseStep::kOne ||
      step_of(dgrad, problem.stride_w, problem.dilation_w) != DepthwiseStep::kOne) {
    return std::nullopt;
  }
  for (const DepthwiseAxis& axis : {rows, columns}) {
    if (int64_t{axis.source} + axis.target +
            int64_t{2} * axis.dilation.divisor() * std::max(problem.r, problem.s) >=
        int64_t{1} << 30) {
      return std::nullopt;
    }
  }
  // Vectors of channels where the problem has enough of them for every SM.
  const LargeChoice choice(problem, rows, columns);
  const int64_t most_blocks = int64_t{problem.n} * (problem.c / kVector) *
                              ceil_div(class_targets(rows), kFewestRows) * rows.classes * columns.classes;
  const bool aligned = problem.c % kVector == 0 &&
                       channels_align(tensors.source, problem.n, rows.source, columns.source, kVector, bytes);
  const bool channels_fast = aligned || (problem.c > 1 && tensors.target.stride_c < tensors.target.stride_w);
  int64_t channels = aligned && most_blocks >= chip.sm_count ? kVector : 1;
  LargeTile tile = choose_tile(choice, channels, chip);
  if (tile.block.rows == 0 && channels > 1) {
    channels = 1;
    tile = choose_tile(choice, channels, chip);
  }
  if (tile.block.rows == 0) return std::nullopt;
  LargeBlock block = tile.block;
  const auto grid_of = [&](const LargeBlock& part) {
    return ceil_div(problem.c, part.channels) * ceil_div(problem.n, part.images) *
           ceil_div(class_targets(rows), part.rows) * ceil_div(class_targets(columns), part.columns) *
           rows.classes * columns.classes;
  };
  if (choice.whole(block)) {
    // Several small planes: more images share a block's filters, more channels its runs of bytes. Every SM
    // keeps two blocks.
    const auto takes = [&](const LargeBlock& part) {
      return choice.floats(part) <= tile.capacity && grid_of(part) >= 2 * chip.sm_count &&
             part.channels * part.images * choice.plane_cells(part) <= kDepthwiseLargeThreads;
    };
    for (bool grown = true; grown;) {
      grown = false;
      LargeBlock more = block;
      more.images *= 2;
      if (more.images <= 2 * problem.n - 1 && takes(more)) {
        block = more;
        grown = true;
      }
      more = block;
      more.channels *= 2;
      if (more.channels <= 2 * problem.c - 1 && takes(more)) {
        block = more;
        grown = true;
      }
    }
  }
  while (grid_of(block) < chip.sm_count && block.rows >= 2 * kFewestRows) {
    block.rows = ceil_div(ceil_div(block.rows, 2), kDepthwiseCellRows) * kDepthwiseCellRows;
  }
  set_block(rows, block.rows);
  set_block(columns, block.columns);

  DepthwiseImagePlan plan;
  plan.path = DepthwiseImagePath::kLarge;
  plan.grid = grid_of(block);
  const int64_t cells = block.channels * block.images * choice.plane_cells(block);
  if (plan.grid >= int64_t{1} << 31) return std::nullopt;
  plan.threads = threads_for(cells);

  DepthwiseLargeParams large;
  large.image = image_of(pass, problem, DepthwiseStep::kOne, rows, columns);
  large.kernel_rows = problem.r;
  large.kernel_columns = problem.s;
  large.images = problem.n;
  large.block_images = static_cast<int>(block.images);
  large.block_channels = FastDiv(static_cast<int>(block.channels));
  large.chunks = FastDiv(static_cast<int>(ceil_div(problem.c, block.channels)));
  large.weight_pitch = static_cast<int>(choice.weight_pitch);
  large.weight_plane = static_cast<int>(choice.weight_plane);
  large.tile = static_cast<int>(block.channels * choice.weight_plane);
  large.pitch = static_cast<int>(choice.pitch(block));
  large.plane = static_cast<int>(choice.plane(block));
  large.floats = static_cast<int>(choice.floats(block));
  large.channels_fast = channels_fast;
  large.cells = static_cast<int>(cells);
  const int planes = static_cast<int>(block.channels * block.images);
  const int column_groups = static_cast<int>(ceil_div(block.columns, kDepthwiseCellColumns));
  const int row_groups = static_cast<int>(ceil_div(block.rows, kDepthwiseCellRows));
  large.cells_inner = FastDiv(channels_fast ? planes : column_groups);
  large.cells_middle = FastDiv(channels_fast ? column_groups : row_groups);
  const int64_t fetch_vectors = planes / channels, tile_columns = choice.tile_columns(block);
  large.vector = static_cast<int>(channels);
  large.fetch_vectors = FastDiv(static_cast<int>(fetch_vectors));
  large.fetch_columns = FastDiv(static_cast<int>(tile_columns));
  large.fetch_rows = static_cast<int>(
      std::clamp<int64_t>(ceil_div(plan.threads, fetch_vectors * tile_columns), 1, choice.tile_rows(block)));
  large.taps = FastDiv(problem.r * problem.s);
  large.tap_columns = FastDiv(problem.s);
  plan.large = large;
  const bool small = large.floats <= kDepthwiseLargeFloats[0];
  plan.shared_bytes = sizeof(float) * static_cast<size_t>(kDepthwiseLargeFloats[small ? 0 : 1]);

  plan.kernel = std::string("depthwise_large_") + (dgrad ? "dgrad" : "fprop");
  plan.tile = std::to_string(block.rows) + " x " + std::to_string(block.columns) + " outputs of " +
              std::to_string(block.channels) + " channels of " + std::to_string(block.images) +
              (block.images == 1 ? " image" : " images") + "; a thread makes 2 x 8";
  plan.reason = std::to_string(problem.r) + "x" + std::to_string(problem.s) +
                " taps, one filter a channel: sources and filters come once to shared memory, a thread "
                "slides over a row's taps with sources in registers";
  return plan;
}

}  // namespace fastcnn
