// Few output channels on FMA units: what thin_output_box.cuh covers, its boxes, stages and tiles.
#include <algorithm>

#include "common/ceil_div.h"
#include "conv2d/thin.h"
#include "conv2d/thin_box_plan.h"

namespace fastcnn {
namespace {

constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int kMostStageChannels = 32;
constexpr int kWarp = 32;

// The layout of a tile's box and how many planes make a stage; no planes where none fits.
struct Stage {
  int64_t rows = 0, columns = 0, row_pitch = 0, plane_pitch = 0;
  int64_t planes = 0;
};

Stage lay_out(const ThinOutputBoxParams& output, int tile_h, int tile_w, int bytes) {
  const int vector = 16 / bytes, inner = output.x.pixel;
  const int64_t taps = int64_t{output.r} * output.s;
  const int64_t capacity = kThinStageBytes / bytes;
  Stage stage;
  stage.rows = box_extent(tile_h, output.step_h, output.r, output.row_step);
  stage.columns = box_extent(tile_w, output.step_w, output.s, output.column_step);
  const int64_t most =
      std::min<int64_t>({kMostStageChannels / inner, ceil_div(output.channels, inner),
                         kThinStageWeights / (taps * inner * thin_output_filters(output.filters))});
  if (inner == 1) {
    ThinBox box = output.x;
    box.planes = 1;
    const int64_t one =
        box_elements(box, vector, stage.rows, stage.columns, stage.row_pitch, stage.plane_pitch);
    if (one <= capacity) stage.planes = std::min(most, 1 + (capacity - one) / stage.plane_pitch);
    return stage;
  }
  // 8 lanes write 8 / planes pixels of each plane at a time: they meet in no bank.
  stage.row_pitch = stage.columns * inner;
  for (stage.planes = 8; stage.planes > 0; stage.planes /= 2) {
    stage.plane_pitch = congruent(stage.rows * stage.row_pitch, 8 / stage.planes * inner, 8 * inner);
    if (stage.planes <= most && stage.planes * stage.plane_pitch <= capacity) break;
  }
  return stage;
}

}  // namespace

bool describe_thin_output(Conv2dPass pass, const Conv2dParams& params, ThinOutputBoxParams& output) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  output.filters = dgrad ? problem.c : problem.k;
  output.channels = dgrad ? problem.k : problem.c;
  const int64_t reach_h = int64_t{problem.r - 1} * problem.dilation_h;
  const int64_t reach_w = int64_t{problem.s - 1} * problem.dilation_w;
  // A stride past the window would bring pixels that nothing sees.
  if (output.filters > kThinMostOutputs || (dgrad && (problem.stride_h != 1 || problem.stride_w != 1)) ||
      problem.stride_h > reach_h + 1 || problem.stride_w > reach_w + 1 || reach_h > kMostIndex ||
      reach_w > kMostIndex) {
    return false;
  }
  output.x.view = dgrad ? params.grad : params.input;
  output.x.image_h = dgrad ? problem.p : problem.h;
  output.x.image_w = dgrad ? problem.q : problem.w;
  output.channels_fast = output.x.view.stride_c == 1;
  if (dgrad) output.activation = params.grad_activation;
  if (!dgrad) output.epilogue = params.epilogue;
  output.weight = params.weight;
  output.weight_out = dgrad ? params.weight.stride_c : params.weight.stride_n;
  output.weight_in = dgrad ? params.weight.stride_n : params.weight.stride_c;
  output.output = params.output;
  output.out_h = dgrad ? problem.h : problem.p;
  output.out_w = dgrad ? problem.w : problem.q;
  output.r = problem.r;
  output.s = problem.s;
  output.row_step = problem.dilation_h;
  output.column_step = problem.dilation_w;
  output.step_h = problem.stride_h;
  output.step_w = problem.stride_w;
  output.flipped = dgrad;
  output.first_h = dgrad ? problem.pad_top - static_cast<int>(reach_h) : -problem.pad_top;
  output.first_w = dgrad ? problem.pad_left - static_cast<int>(reach_w) : -problem.pad_left;
  return true;
}

std::optional<ThinPlan> plan_thin_output_box(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const int bytes = dtype_size(params.dtype);
  const int vector = 16 / bytes;
  const int64_t taps = int64_t{problem.r} * problem.s;
  ThinPlan plan;
  plan.few_outputs = true;
  ThinOutputBoxParams& output = plan.output_box;
  // Half precision's 1x1 layers are the pointwise kernel's.
  if (!describe_thin_output(pass, params, output) || taps > kThinStageWeights ||
      (bytes == 2 && taps == 1 && problem.pad_top == 0 && problem.pad_left == 0)) {
    return std::nullopt;
  }
  ThinBox& box = output.x;
  output.vectors = bytes == 4 && output.channels % vector == 0 &&
                   channels_align(box.view, problem.n, box.image_h, box.image_w, vector, bytes);
  // NHWC in half precision would read single elements for no gain over the generic kernel's vectors.
  if (bytes == 2 && output.channels_fast && output.channels > 1) return std::nullopt;
  // The activation's backward is taken in registers, element by element.
  box.dense =
      !output.vectors && output.activation.saved == nullptr && (box.view.stride_w == 1 || box.image_w == 1);
  box.pixel = output.vectors ? vector : 1;
  box.pixel_div = FastDiv(1);

  if (int64_t{output.out_h} * output.out_w < kThinLeastPixels) return std::nullopt;
  output.rows_slide = problem.r == 3 && problem.dilation_h == 1 && problem.stride_h == 1;

  // The tile that costs the chip the fewest bytes' time: a multiprocessor sums some 8 products while it loads
  // a byte. Single 16-byte planes load half of each sector.
  constexpr int64_t kProductsPerByte = 8, kStageBytes = 512;
  const int64_t chip_blocks = 2 * int64_t{chip.sm_count};
  const int64_t products = taps * thin_output_filters(output.filters);
  int64_t best_cost = 0, tiles = 0;
  Stage best;
  for (int64_t cuts = 1; cuts <= 256 && cuts <= output.out_w; cuts = cuts < 16 ? cuts + 1 : cuts * 2) {
    const int64_t w = ceil_div(output.out_w, cuts);
    const int64_t most_h = std::min<int64_t>(64, ceil_div(output.out_h, kThinLaneRows) * kThinLaneRows);
    for (int64_t h = kThinLaneRows; h <= most_h; h += kThinLaneRows) {
      const int64_t slots = w * (h / kThinLaneRows);
      if (slots > kThinThreads) break;
      const Stage stage = lay_out(output, static_cast<int>(h), static_cast<int>(w), bytes);
      if (stage.planes < 1) break;
      const int64_t count = problem.n * ceil_div(output.out_h, h) * ceil_div(output.out_w, w);
      const int64_t waste = output.vectors && stage.planes == 1 && output.channels > vector ? 2 : 1;
      const int64_t streams =
          std::min<int64_t>(kThinThreads / (ceil_div(slots, kWarp) * kWarp), stage.planes);
      // A row of a plane comes in whole vectors of the image's.
      const int64_t columns =
          box.dense ? std::min<int64_t>(box.image_w, (ceil_div(stage.columns - 1, vector) + 1) * vector)
                    : stage.columns;
      const int64_t channel = stage.rows * columns * bytes * waste +
                              kThinThreads / streams * kThinLaneRows * products / kProductsPerByte +
                              kStageBytes / (stage.planes * box.pixel);
      const int64_t cost = ceil_div(count, chip_blocks) * channel;
      if (tiles != 0 && cost >= best_cost) continue;
      best_cost = cost;
      best = stage;
      tiles = count;
      output.tile_h = static_cast<int>(h);
      output.tile_w = static_cast<int>(w);
      output.slots = static_cast<int>(slots);
      output.streams = static_cast<int>(streams);
    }
  }
  if (tiles == 0) return std::nullopt;
  best.planes -= best.planes % output.streams;
  const int64_t stages = ceil_div(output.channels, best.planes * box.pixel);
  if (tiles * stages > kMostIndex) return std::nullopt;
  box.planes = static_cast<int>(best.planes);
  box.rows = static_cast<int>(best.rows);
  box.columns = static_cast<int>(best.columns);
  box.row_pitch = static_cast<int>(best.row_pitch);
  box.plane_pitch = static_cast<int>(best.plane_pitch);
  box.row_count = FastDiv(box.rows);
  box.vectors = FastDiv(static_cast<int>(ceil_div(best.columns + vector - 1, vector)));
  output.stages = FastDiv(static_cast<int>(stages));
  output.tiles_h = FastDiv(static_cast<int>(ceil_div(output.out_h, output.tile_h)));
  output.tiles_w = FastDiv(static_cast<int>(ceil_div(output.out_w, output.tile_w)));
  output.tile_columns = FastDiv(output.tile_w);
  output.warp_slots = FastDiv(static_cast<int>(ceil_div(output.slots, kWarp) * kWarp));
  output.plane_div = FastDiv(box.planes);
  output.box_columns = FastDiv(box.columns);
  output.tap_div = FastDiv(static_cast<int>(taps));
  output.s_div = FastDiv(problem.s);
  output.tiles = static_cast<int>(tiles);
  output.tiles_per_block = static_cast<int>(ceil_div(tiles, 2 * chip_blocks));
  plan.grid = ceil_div(tiles, output.tiles_per_block);
  plan.threads = kThinThreads;
  plan.shared_bytes =
      2 * kThinStageBytes + (2 * kThinStageWeights + kThinThreads * kThinMostOutputs) * sizeof(float);
  plan.tile = std::to_string(output.tile_h) + "x" + std::to_string(output.tile_w) + " pixels x " +
              std::to_string(output.filters) + " channels";
  plan.reason =
      std::string("up to 8 output channels: a thread sums 4 pixels times all filters on FMA units, ") +
      (dgrad ? "dy" : "x") + " in " +
      (box.dense ? "planes, in 16-byte loads" : (output.vectors ? "16-byte loads" : "single elements"));
  return plan;
}

}  // namespace fastcnn
