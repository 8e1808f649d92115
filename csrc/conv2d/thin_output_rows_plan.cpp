// Few output channels on tensor cores with rows of taps in the reduction: what thin_output_rows.cuh covers,
// how its warps share columns, its stages and tiles.
#include <algorithm>

#include "common/ceil_div.h"
#include "conv2d/thin.h"
#include "conv2d/thin_box_plan.h"

namespace fastcnn {
namespace {

constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int64_t kMostReach = 1 << 20;
constexpr int kStageElements = kThinRowsStageBytes / 2;
constexpr int kVector = 8;
constexpr int kMostPlanes = 8;  // of a stage
constexpr int kWarps = kThinThreads / 32;

// How warps share the columns: `groups` of them, each with `octets` of columns of its own.
struct Columns {
  int octets = 0, groups = 0;
};

// The fewest octets that cover the columns, and of those the fewest groups; none where they are too many.
Columns share_columns(int64_t columns) {
  Columns best;
  for (const int groups : {1, 2, 4}) {
    for (const int octets : {3, 4, 5}) {
      const bool fewer = best.groups == 0 || groups * octets < best.groups * best.octets;
      if (groups * octets * 8 >= columns && fewer) best = {octets, groups};
    }
  }
  return best;
}

// The planes of a box of so many pixels: where 8 / planes neighbours of each are written by 8 lanes, these
// meet in no bank.
int64_t plane_pitch(int64_t pixels, int planes) {
  return congruent(pixels * kVector, kMostPlanes / planes * kVector, 8 * kVector);
}

// The most planes that fit a stage with their weights, of no more than `channels` need; 0: not even two.
int stage_planes(int64_t pixels, int64_t plane_weights, int channels) {
  const int64_t needed = ceil_div(channels, 2 * kVector) * 2;
  for (int planes = kMostPlanes; planes > 1; planes /= 2) {
    if (planes <= needed && planes * (plane_pitch(pixels, planes) + plane_weights) <= kStageElements) {
      return planes;
    }
  }
  return 0;
}

}  // namespace

std::optional<ThinPlan> plan_thin_output_rows(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  ThinPlan plan;
  plan.few_outputs = plan.tensor_cores = plan.rows_reduced = true;
  ThinOutputRowsParams& output = plan.output_rows;
  const int64_t reach_h = int64_t{problem.r - 1} * problem.dilation_h;
  const int64_t reach_w = int64_t{problem.s - 1} * problem.dilation_w;
  // 1x1 layers are the pointwise kernel's.
  if (dtype_size(params.dtype) != 2 || chip.shared_bytes_per_block < 2 * kThinRowsStageBytes ||
      reach_h > kMostReach || reach_w > kMostReach || !describe_thin_output(pass, params, output) ||
      !output.channels_fast || output.channels == 1 ||
      (problem.r == 1 && problem.s == 1 && problem.pad_top == 0 && problem.pad_left == 0)) {
    return std::nullopt;
  }
  const Columns shared = share_columns(int64_t{output.filters} * problem.s);
  if (shared.groups == 0) return std::nullopt;
  const int padded = shared.groups * shared.octets * 8;
  const int parts = kWarps / shared.groups;
  const int64_t most_positions = int64_t{thin_rows_tiles(shared.octets)} * parts * 16;
  const int64_t plane_weights = int64_t{problem.r} * padded * kVector;
  const int64_t steps = ceil_div(output.channels, 2 * kVector);
  ThinBox& box = output.x;
  output.vectors = output.channels % kVector == 0 &&
                   channels_align(box.view, problem.n, box.image_h, box.image_w, kVector, 2);
  output.weight_vectors = !dgrad && output.channels % kVector == 0 &&
                          channels_align(params.weight, problem.k, problem.r, problem.s, kVector, 2);

  // The tile that costs the chip the fewest cycles of a multiprocessor: products on tensor cores (sm_80's),
  // 32 bytes a cycle for the boxes and weights, barriers of the stages, the beginning and end of a block.
  constexpr int64_t kProductCycles = 2, kStageCycles = 400, kTileCycles = 2000;
  const int64_t chip_blocks = 2 * int64_t{chip.sm_count};
  int64_t best_cost = 0, tiles = 0;
  for (int64_t cuts = 1; cuts <= 1024 && cuts <= output.out_w; cuts = cuts < 16 ? cuts + 1 : cuts * 2) {
    const int64_t w = ceil_div(output.out_w, cuts);
    const int64_t box_columns = (w - 1) * problem.stride_w + reach_w + 1;
    if (box_columns > most_positions) continue;
    const int64_t least_cuts = ceil_div(output.out_h, most_positions / box_columns);
    for (int64_t cut = 0; least_cuts + cut <= output.out_h; cut = cut < 4 ? cut + 1 : cut * 2) {
      const int64_t h = ceil_div(output.out_h, least_cuts + cut);
      const int64_t positions = ceil_div(h * box_columns, 16) * 16, pitch = congruent(positions, 4, 32);
      const int64_t box_rows = (h - 1) * problem.stride_h + reach_h + 1, pixels = box_rows * box_columns;
      const int planes = stage_planes(pixels, plane_weights, output.channels);
      if (planes == 0) continue;
      const int64_t count = problem.n * ceil_div(output.out_h, h) * ceil_div(output.out_w, w);
      const int64_t products = kWarps * ceil_div(positions / 16, parts) * shared.octets * problem.r;
      const int64_t tile_cycles = steps * (products * kProductCycles + pixels + problem.r * padded) +
                                  ceil_div(steps * 2, planes) * kStageCycles + kTileCycles;
      const int64_t cost = ceil_div(count, chip_blocks) * tile_cycles;
      if (tiles != 0 && cost >= best_cost) continue;
      best_cost = cost;
      tiles = count;
      output.tile_h = static_cast<int>(h);
      output.tile_w = static_cast<int>(w);
      output.positions = static_cast<int>(h * box_columns);
      output.pitch = static_cast<int>(pitch);
      box.planes = planes;
      box.rows = static_cast<int>(box_rows);
      box.columns = static_cast<int>(box_columns);
    }
  }
  if (tiles == 0 || tiles > kMostIndex) return std::nullopt;
  plan.unit_octets = shared.octets;
  box.row_pitch = box.columns * kVector;
  box.plane_pitch = static_cast<int>(plane_pitch(int64_t{box.rows} * box.columns, box.planes));
  output.weight_start = box.planes * box.plane_pitch;
  output.weight_pitch = static_cast<int>(plane_weights);
  output.warp_parts = FastDiv(parts);
  output.column_div = FastDiv(padded);
  output.filter_div = FastDiv(output.filters);
  output.stages = FastDiv(static_cast<int>(ceil_div(steps * 2, box.planes)));
  output.tiles_h = FastDiv(static_cast<int>(ceil_div(output.out_h, output.tile_h)));
  output.tiles_w = FastDiv(static_cast<int>(ceil_div(output.out_w, output.tile_w)));
  output.tile_columns = FastDiv(output.tile_w);
  output.plane_div = FastDiv(box.planes);
  output.box_columns = FastDiv(box.columns);
  plan.grid = tiles;
  plan.threads = kThinThreads;
  plan.shared_bytes = 2 * kThinRowsStageBytes;
  plan.tile = std::to_string(output.tile_h) + "x" + std::to_string(output.tile_w) + " pixels x " +
              std::to_string(output.filters) + " channels";
  plan.reason =
      std::string("up to 8 output channels: channels and rows of taps are reduced on tensor cores, ") +
      "columns of taps in shared memory, " + (dgrad ? "dy" : "x") + " in " +
      (output.vectors ? "16-byte loads" : "single elements");
  return plan;
}

}  // namespace fastcnn
