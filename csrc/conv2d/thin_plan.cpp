// What the thin kernels cover, their boxes, tiles and splits.
#include <algorithm>
#include <utility>

#include "common/ceil_div.h"
#include "conv2d/split_sum.h"
#include "conv2d/thin.h"
#include "conv2d/thin_box_plan.h"

namespace fastcnn {
namespace {

constexpr int kMostChannels = 4;
constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;
constexpr int kMostWarps = kThinThreads / 32;
constexpr int kTableBytes = 8 * 1024;  // beside the arena

bool even(int64_t value) {
  return value % 2 == 0;
}

// What of the box does not depend on the tile.
ThinBox make_box(const Conv2dParams& params) {
  const Conv2dProblem& problem = params.problem;
  const TensorView& x = params.input;
  ThinBox box;
  box.view = x;
  box.image_h = problem.h;
  box.image_w = problem.w;
  const bool channels_inside =
      problem.c > 1 && x.stride_c == 1 && (x.stride_w == problem.c || problem.w == 1);
  const bool planes = !channels_inside && (x.stride_w == 1 || problem.w == 1);
  box.dense = channels_inside || planes;
  box.planes = planes ? problem.c : 1;
  box.pixel = planes ? 1 : problem.c;
  box.pixel_div = FastDiv(box.pixel);
  return box;
}

// The order of reduction. Pairs: runs begin and end at even elements, which the caller knows to be possible.
ThinTaps make_taps(const Conv2dProblem& problem, const ThinBox& box, bool paired, int lead) {
  ThinTaps taps;
  taps.channels = problem.c;
  taps.r = problem.r;
  taps.s = problem.s;
  taps.row_step = problem.dilation_h;
  taps.column_step = problem.dilation_w;
  taps.runs = box.planes * problem.r;
  taps.run_length = problem.s * box.pixel;
  taps.lead = paired ? lead : 0;
  taps.run_pitch = taps.lead + taps.run_length;
  if (paired) taps.run_pitch += taps.run_pitch % 2;
  taps.run_pitch_div = FastDiv(taps.run_pitch);
  taps.pixel_div = FastDiv(box.pixel);
  taps.r_div = FastDiv(problem.r);
  return taps;
}

// Whether two neighbouring taps can be read as one word for every pixel: each run of taps of each pixel then
// begins at an element as even, or as odd (`lead`), as any other.
bool pairs(const Conv2dParams& params, const ThinBox& box, int& lead) {
  const Conv2dProblem& problem = params.problem;
  lead = 0;
  if ((problem.dilation_w > 1 && problem.s > 1) || !even(int64_t{problem.stride_w} * box.pixel)) return false;
  if (!box.dense) return true;
  const TensorView& x = params.input;
  if (!even(x.stride_h) || (box.planes > 1 && !even(x.stride_c)) || (problem.n > 1 && !even(x.stride_n))) {
    return false;
  }
  const int64_t first =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(x.data) / 2) - int64_t{problem.pad_left} * box.pixel;
  lead = static_cast<int>(first & 1);
  return true;
}

struct Tile {
  int h = 1, w = 1;
  int64_t count = 0;
};

// How a tile is chosen.
struct TileRules {
  int most_slots = 0;                             // pixels of a tile
  int quantum = 1;                                // of its width
  int round = 1;                                  // a block works on so many pixels at a time
  int64_t pixel_bytes = 0;                        // of y or dy in a block
  int64_t shares = 1;                             // blocks that work on a tile
  int64_t arena = 0;                              // elements, for the box and
  int64_t slot_elements = 0, fixed_elements = 0;  // what else lies there, for each slot and in all
};

// The tile that costs the chip the fewest bytes' time: idle slots, halos and idle multiprocessors count, and
// for each tile a few barriers.
std::optional<Tile> choose_tile(const Conv2dProblem& problem, const ThinBox& box, int vector, int chip_blocks,
                                const TileRules& rules) {
  constexpr int64_t kTileBytes = 4096;
  std::optional<Tile> best;
  int64_t best_cost = 0;
  const int64_t width = ceil_div(problem.q, rules.quantum);
  for (int slots = rules.most_slots; slots >= 64; slots /= 2) {
    const int64_t capacity = rules.arena - rules.fixed_elements - slots * rules.slot_elements;
    const int64_t least_cuts = ceil_div(width * rules.quantum, slots);
    for (int64_t cuts = least_cuts; cuts < least_cuts + 8 && cuts <= width; ++cuts) {
      Tile tile;
      tile.w = static_cast<int>(ceil_div(width, cuts) * rules.quantum);
      if (tile.w > slots) continue;
      const int64_t columns = box_extent(tile.w, problem.stride_w, problem.s, problem.dilation_w);
      const auto elements = [&](int h) {
        int64_t row_pitch, plane_pitch;
        return box_elements(box, vector, box_extent(h, problem.stride_h, problem.r, problem.dilation_h),
                            columns, row_pitch, plane_pitch);
      };
      int rows = std::min(problem.p, slots / tile.w);
      while (rows > 1 && elements(rows) > capacity) --rows;
      if (elements(rows) > capacity) continue;
      tile.h = static_cast<int>(ceil_div(problem.p, ceil_div(problem.p, rows)));
      tile.count = problem.n * ceil_div(problem.p, tile.h) * ceil_div(problem.q, tile.w);
      const int64_t worked = ceil_div(int64_t{tile.h} * tile.w, rules.round) * rules.round;
      const int64_t bytes = worked * rules.pixel_bytes + elements(tile.h) * 16 / vector + kTileBytes;
      const int64_t cost = ceil_div(tile.count * rules.shares, chip_blocks) * bytes;
      if (!best || cost < best_cost) {
        best = tile;
        best_cost = cost;
      }
    }
  }
  return best;
}

// Whether the filters are one run of memory, one behind the other, of 16-byte alignment; channels inside or
// outside of the window.
bool dense_weights(const Conv2dParams& params, bool channels_inner) {
  const Conv2dProblem& problem = params.problem;
  const TensorView& weight = params.weight;
  const int channels = problem.c;
  const auto steps = [](int extent, int64_t stride, int64_t expected) {
    return extent == 1 || stride == expected;
  };
  const int64_t pixel = channels_inner ? channels : 1;
  return steps(channels, weight.stride_c, channels_inner ? 1 : int64_t{problem.r} * problem.s) &&
         steps(problem.s, weight.stride_w, pixel) && steps(problem.r, weight.stride_h, pixel * problem.s) &&
         steps(problem.k, weight.stride_n, int64_t{channels} * problem.r * problem.s) &&
         reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

// Whether 16 bytes of neighbours of y or dy (filters, or pixels of a row from a whole vector on) can be moved
// as one.
bool image_vectors(const Conv2dParams& params, const TensorView& y, bool channels_last, int vector) {
  const Conv2dProblem& problem = params.problem;
  if (channels_last) {
    return channels_align(y, problem.n, problem.p, problem.q, vector, dtype_size(params.dtype));
  }
  const auto aligned = [&](int64_t stride, int extent) { return extent == 1 || stride % vector == 0; };
  return y.stride_w == 1 && aligned(y.stride_h, problem.p) && aligned(y.stride_c, problem.k) &&
         aligned(y.stride_n, problem.n) && reinterpret_cast<uintptr_t>(y.data) % 16 == 0;
}

std::string tile_text(const Tile& tile, int filters, const char* what = " filters") {
  return std::to_string(tile.h) + "x" + std::to_string(tile.w) + " pixels x " + std::to_string(filters) +
         what;
}

std::string box_text(const ThinBox& box, const std::string& image = "x") {
  if (!box.dense) return image + " element by element";
  return (box.planes > 1 ? "planes of " : "rows of ") + image + " in 16-byte loads";
}

std::optional<ThinPlan> plan_fprop(const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  const int vector = 16 / bytes;
  ThinPlan plan;
  plan.tensor_cores = bytes == 2;
  plan.channels_last = params.output.stride_c == 1;
  const int run_filters = plan.tensor_cores ? kThinMmaFilters : kThinRunFilters;
  const int run_pixels = plan.tensor_cores ? kThinMmaPixels : kThinRunPixels;
  ThinFpropParams& fprop = plan.fprop;
  fprop.x = make_box(params);
  int lead = 0;
  plan.paired = plan.tensor_cores && pairs(params, fprop.x, lead);
  fprop.taps = make_taps(problem, fprop.x, plan.paired, lead);
  int64_t reduction = int64_t{fprop.taps.runs} * fprop.taps.run_pitch;
  if (plan.tensor_cores) reduction = ceil_div(reduction, 16) * 16;
  if (reduction > kThinMaxReduction) return std::nullopt;
  fprop.steps = static_cast<int>(plan.tensor_cores ? reduction / 16 : reduction);

  // Filters of a block: all, if their weights leave room to pixels.
  const int64_t arena = kThinArenaBytes / bytes;
  const int64_t blocks = ceil_div(problem.k, run_filters);
  int64_t filter_blocks = std::min<int64_t>(blocks, kThinFilters / run_filters);
  while (filter_blocks > 1 && filter_blocks * run_filters * reduction > arena * 2 / 3) --filter_blocks;
  const int64_t slabs = ceil_div(blocks, filter_blocks);
  filter_blocks = ceil_div(blocks, slabs);
  fprop.filter_blocks = static_cast<int>(filter_blocks);
  fprop.slab_filters = fprop.filter_blocks * run_filters;

  TileRules rules;
  rules.most_slots = kThinSlots;
  // NCHW: a vector of a row's pixels is stored as one.
  if (plan.tensor_cores && !plan.channels_last) rules.quantum = vector;
  rules.round = static_cast<int>(std::max<int64_t>(1, kMostWarps / filter_blocks) * run_pixels);
  rules.pixel_bytes = fprop.slab_filters * bytes;
  rules.shares = slabs;
  rules.arena = arena;
  rules.fixed_elements = fprop.slab_filters * reduction;
  const std::optional<Tile> tile = choose_tile(problem, fprop.x, vector, 2 * chip.sm_count, rules);
  if (!tile || tile->count * slabs > kMostIndex) return std::nullopt;
  size_box(fprop.x, vector, box_extent(tile->h, problem.stride_h, problem.r, problem.dilation_h),
           box_extent(tile->w, problem.stride_w, problem.s, problem.dilation_w));
  fprop.weight = params.weight;
  fprop.output = params.output;
  fprop.epilogue = params.epilogue;
  fprop.out_h = problem.p;
  fprop.out_w = problem.q;
  fprop.filters = problem.k;
  fprop.step_h = problem.stride_h;
  fprop.step_w = problem.stride_w;
  fprop.first_h = -problem.pad_top;
  fprop.first_w = -problem.pad_left;
  fprop.tile_h = tile->h;
  fprop.tile_w = tile->w;
  fprop.tiles = static_cast<int>(tile->count);
  fprop.pixel_blocks = static_cast<int>(ceil_div(int64_t{tile->h} * tile->w, run_pixels));
  fprop.weight_channels_inner = params.weight.stride_c == 1 && problem.r * problem.s > 1;
  fprop.weight_dense = dense_weights(params, fprop.weight_channels_inner) &&
                       problem.c * problem.r * problem.s * fprop.slab_filters % vector == 0;
  fprop.vector_store = (plan.channels_last || plan.tensor_cores) &&
                       image_vectors(params, params.output, plan.channels_last, vector);
  fprop.slabs = FastDiv(static_cast<int>(slabs));
  fprop.tiles_h = FastDiv(static_cast<int>(ceil_div(problem.p, tile->h)));
  fprop.tiles_w = FastDiv(static_cast<int>(ceil_div(problem.q, tile->w)));
  fprop.tile_columns = FastDiv(tile->w);
  fprop.block_filters = FastDiv(fprop.filter_blocks);
  fprop.weight_filter = FastDiv(problem.c * problem.r * problem.s);
  fprop.weight_s = FastDiv(problem.s);
  fprop.weight_r = FastDiv(problem.r);
  fprop.weight_c = FastDiv(problem.c);

  // Two rounds of two blocks an SM, if there is as much to do; one where bringing the weights to so many
  // blocks would be more than a sixteenth of the output.
  const int64_t round_blocks = 2 * int64_t{chip.sm_count};
  const int64_t weights = int64_t{fprop.slab_filters} * reduction;
  const int64_t outputs = int64_t{problem.k} * problem.output_pixels();
  const int64_t rounds = 2 * round_blocks * weights > outputs / 16 ? 1 : 2;
  const int64_t per_block = ceil_div(tile->count * slabs, rounds * round_blocks);
  fprop.tiles_per_block = static_cast<int>(per_block);
  plan.grid = slabs * ceil_div(tile->count, per_block);
  plan.threads = kThinThreads;
  plan.shared_bytes = kThinArenaBytes + (kThinMaxReduction + kThinSlots + kThinFilters) * sizeof(int);
  plan.tile = tile_text(*tile, std::min(problem.k, fprop.slab_filters));
  plan.reason = "up to 4 channels: taps are one dimension of products on " +
                std::string(plan.tensor_cores ? "tensor cores, " : "FMA units, ") + box_text(fprop.x);
  if (plan.tensor_cores) plan.reason += plan.paired ? ", two taps a read" : ", one tap a read";
  return plan;
}

// Cuts the sums of a block into the units of warps: 64 filters x 5 (2) octets of taps, the bias gradient's
// among them, or x 32 taps on FMA units. Gives the blocks that share filters.
int64_t set_units(ThinPlan& plan) {
  ThinWgradParams& wgrad = plan.wgrad;
  int64_t parts = ceil_div(wgrad.taps, kThinUnitTaps);
  if (plan.tensor_cores) {
    const int64_t octets = ceil_div(wgrad.taps + (wgrad.bias_grad != nullptr ? 1 : 0), 8);
    plan.unit_octets = octets <= 2 ? 2 : kThinUnitOctets;
    parts = ceil_div(octets, plan.unit_octets);
  }
  const int filter_blocks = wgrad.filters > kThinMmaFilters && 2 * parts <= kThinWgradWarps ? 2 : 1;
  wgrad.block_filters = filter_blocks * kThinMmaFilters;
  wgrad.unit_parts = FastDiv(static_cast<int>(parts));
  wgrad.units = static_cast<int>(filter_blocks * parts);
  const int64_t unit_tiles = ceil_div(wgrad.units, kThinWgradWarps);
  wgrad.block_units = static_cast<int>(ceil_div(wgrad.units, unit_tiles));
  wgrad.streams = std::max(1, kMostWarps / wgrad.block_units);
  plan.threads = 32 * wgrad.block_units * wgrad.streams;
  return unit_tiles;
}

// wgrad of few output channels as one of few input channels: see thin_wgrad_exchanged.cuh.
std::optional<Conv2dParams> exchange(const Conv2dParams& params) {
  Conv2dParams result = params;
  Conv2dProblem& problem = result.problem;
  const int64_t pixels = int64_t{problem.h} * problem.w, output_pixels = int64_t{problem.p} * problem.q;
  if (problem.k > kThinMostOutputs || problem.stride_h != 1 || problem.stride_w != 1 ||
      std::min(pixels, output_pixels) < kThinLeastPixels) {
    return std::nullopt;
  }
  // Every pixel of x is multiplied, however few dy has behind a window nearly as large as the image. The
  // generic kernel multiplies those of dy alone, but 16 rows of filters, at less than half the rate of FMA
  // units and a twentieth of tensor cores'.
  if ((dtype_size(params.dtype) == 2 ? 400 : 40) * output_pixels < problem.k * pixels) return std::nullopt;
  const int64_t reach_h = int64_t{problem.r - 1} * problem.dilation_h;
  const int64_t reach_w = int64_t{problem.s - 1} * problem.dilation_w;
  if (reach_h > kMostIndex || reach_w > kMostIndex) return std::nullopt;
  const auto beyond = [](int pad, int64_t reach, int image, int output) {
    return pad > reach || output - image > pad;
  };
  // The bias gradient is summed from what x's pixels see: pixels of dy that see padding alone are not.
  if (params.bias_grad != nullptr && (beyond(problem.pad_top, reach_h, problem.h, problem.p) ||
                                      beyond(problem.pad_left, reach_w, problem.w, problem.q))) {
    return std::nullopt;
  }
  problem.pad_top = static_cast<int>(reach_h) - problem.pad_top;
  problem.pad_left = static_cast<int>(reach_w) - problem.pad_left;
  std::swap(problem.c, problem.k);
  std::swap(problem.h, problem.p);
  std::swap(problem.w, problem.q);
  std::swap(result.input, result.grad);
  TensorView& dw = result.output;
  const int64_t last_tap = (problem.r - 1) * dw.stride_h + (problem.s - 1) * dw.stride_w;
  dw.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(dw.data) +
                                    static_cast<uintptr_t>(last_tap * dtype_size(params.dtype)));
  dw.stride_h = -dw.stride_h;
  dw.stride_w = -dw.stride_w;
  std::swap(dw.stride_n, dw.stride_c);
  return result;
}

std::optional<ThinPlan> plan_wgrad(const Conv2dParams& params, bool exchanged, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  const int vector = 16 / bytes;
  ThinPlan plan;
  plan.tensor_cores = bytes == 2;
  plan.channels_last = params.grad.stride_c == 1;
  ThinWgradParams& wgrad = plan.wgrad;
  wgrad.dy = params.grad;
  (exchanged ? wgrad.box_activation : wgrad.activation) = params.grad_activation;
  wgrad.output = params.output;
  (exchanged ? wgrad.box_sums : wgrad.bias_grad) = params.bias_grad;
  wgrad.exchanged = exchanged;
  wgrad.finishes_box = wgrad.box_activation.saved != nullptr || wgrad.box_sums != nullptr;
  wgrad.out_h = problem.p;
  wgrad.out_w = problem.q;
  wgrad.filters = problem.k;
  wgrad.channels = problem.c;
  wgrad.taps = problem.c * problem.r * problem.s;
  wgrad.tap_rows = problem.dilation_h;
  wgrad.tap_columns = problem.dilation_w;
  wgrad.step_h = problem.stride_h;
  wgrad.step_w = problem.stride_w;
  wgrad.first_h = -problem.pad_top;
  wgrad.first_w = -problem.pad_left;
  wgrad.s_div = FastDiv(problem.s);
  wgrad.r_div = FastDiv(problem.r);
  wgrad.split_sums = int64_t{problem.k} * wgrad.taps;
  if (params.bias_grad != nullptr) wgrad.split_sums += exchanged ? problem.c : problem.k;
  const int64_t unit_tiles = set_units(plan);
  const int64_t slabs = ceil_div(problem.k, wgrad.block_filters);

  wgrad.x = make_box(params);
  // The gradient's tile: of each pixel all filters of a block, or of each filter all pixels.
  const bool by_pixel = plan.channels_last || !plan.tensor_cores;
  const int64_t slot_pitch = wgrad.block_filters + vector;
  const int run = plan.tensor_cores ? 16 : 1;
  plan.shared_bytes =
      kThinArenaBytes +
      (kThinWgradSlots + kThinWgradWarps * (kThinUnitOctets * 8 + kThinMostOutputs)) * sizeof(int);
  // Blocks that an SM holds: of 128 registers a thread, and of shared memory, of which each takes 1 KB more.
  const int room = (chip.shared_bytes_per_block + 1024) / (static_cast<int>(plan.shared_bytes) + 1024);
  const int sm_blocks = std::clamp(std::min(512 / plan.threads, room), 1, 3);
  TileRules rules;
  rules.most_slots = kThinWgradSlots;
  if (!by_pixel) rules.quantum = vector;
  rules.round = run * wgrad.streams;
  rules.pixel_bytes = wgrad.block_filters * bytes;
  rules.shares = slabs * unit_tiles;
  rules.arena = kThinArenaBytes / bytes;
  rules.slot_elements = by_pixel ? slot_pitch : wgrad.block_filters;
  rules.fixed_elements = by_pixel ? 0 : int64_t{wgrad.block_filters} * vector;
  const std::optional<Tile> tile = choose_tile(problem, wgrad.x, vector, sm_blocks * chip.sm_count, rules);
  if (!tile || tile->count > kMostIndex) return std::nullopt;
  size_box(wgrad.x, vector, box_extent(tile->h, problem.stride_h, problem.r, problem.dilation_h),
           box_extent(tile->w, problem.stride_w, problem.s, problem.dilation_w));
  wgrad.tile_h = tile->h;
  wgrad.tile_w = tile->w;
  wgrad.slots = static_cast<int>(ceil_div(int64_t{tile->h} * tile->w, run) * run);
  wgrad.dy_pitch = by_pixel ? static_cast<int>(slot_pitch) : wgrad.slots + vector;
  wgrad.dy_vectors = image_vectors(params, params.grad, plan.channels_last, vector);
  wgrad.dy_vectors_div = FastDiv(static_cast<int>((by_pixel ? wgrad.block_filters : wgrad.slots) / vector));
  wgrad.slot_div = FastDiv(wgrad.slots);
  wgrad.box_columns = FastDiv(wgrad.x.columns);
  wgrad.slabs = FastDiv(static_cast<int>(slabs));
  wgrad.unit_tiles = FastDiv(static_cast<int>(unit_tiles));
  wgrad.tiles = static_cast<int>(tile->count);
  wgrad.tiles_h = FastDiv(static_cast<int>(ceil_div(problem.p, tile->h)));
  wgrad.tiles_w = FastDiv(static_cast<int>(ceil_div(problem.q, tile->w)));
  wgrad.tile_columns = FastDiv(tile->w);

  // One round of what the chip holds; less, down to one block an SM, where partial sums, written and read,
  // would be more than a sixth of what is read.
  const int64_t partial_bytes = wgrad.split_sums * 4;
  const int64_t read_bytes =
      (int64_t{problem.c} * problem.h * problem.w + int64_t{problem.k} * problem.p * problem.q) * problem.n *
      bytes;
  const int64_t round = std::max<int64_t>(1, sm_blocks * chip.sm_count / rules.shares);
  const int64_t least = ceil_div(chip.sm_count, rules.shares);
  const int64_t wanted = 2 * round * partial_bytes <= read_bytes / 6 ? round : std::min(round, least);
  const int64_t splits = std::clamp<int64_t>(
      wanted, 1, std::max<int64_t>(1, std::min(tile->count, kMostWorkspace / partial_bytes)));
  wgrad.tiles_per_block = static_cast<int>(ceil_div(tile->count, splits));
  plan.splits = static_cast<int>(ceil_div(tile->count, wgrad.tiles_per_block));
  if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(plan.splits * partial_bytes);
  plan.grid = slabs * unit_tiles * plan.splits;
  if (plan.grid > kMostIndex) return std::nullopt;
  plan.tile =
      tile_text(*tile, std::min(problem.k, wgrad.block_filters), exchanged ? " channels" : " filters");
  const bool single = !wgrad.dy_vectors || (!plan.channels_last && !plan.tensor_cores);
  plan.reason =
      std::string(exchanged ? "up to 8 output channels: x and dy exchanged, " : "up to 4 channels: ") +
      "taps are one dimension of products on " + (plan.tensor_cores ? "tensor cores, " : "FMA units, ") +
      box_text(wgrad.x, exchanged ? "dy" : "x") + (exchanged ? ", x in " : ", dy in ") +
      (single ? "single elements" : "16-byte loads");
  return plan;
}

// Few output channels, of fprop or dgrad: see thin_output_mma.cuh.
std::optional<ThinPlan> plan_output(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  ThinPlan plan;
  plan.few_outputs = plan.tensor_cores = true;
  ThinOutputParams& output = plan.output;
  output.input = dgrad ? params.grad : params.input;
  output.channels = dgrad ? problem.k : problem.c;
  output.filters = dgrad ? problem.c : problem.k;
  output.image_h = dgrad ? problem.p : problem.h;
  output.image_w = dgrad ? problem.q : problem.w;
  output.out_h = dgrad ? problem.h : problem.p;
  output.out_w = dgrad ? problem.w : problem.q;
  const int64_t columns = int64_t{output.filters} * problem.r * problem.s;
  if (dtype_size(params.dtype) != 2 || problem.stride_h != 1 || problem.stride_w != 1 ||
      output.filters > kThinMostOutputs || columns > kThinOutputColumns ||
      !channels_align(output.input, problem.n, output.image_h, output.image_w, 8, 2) ||
      output.channels % 8 != 0) {
    return std::nullopt;
  }
  const int octets = static_cast<int>(ceil_div(columns, 8));
  plan.unit_octets = octets <= 2 ? 2 : (octets <= 4 ? 4 : (octets == 5 ? 5 : 10));
  output.steps = static_cast<int>(ceil_div(output.channels, 32));
  if (int64_t{output.steps} * 2 * plan.unit_octets * 128 > kThinOutputWeights) return std::nullopt;

  if (dgrad) output.activation = params.grad_activation;
  if (!dgrad) output.epilogue = params.epilogue;
  output.weight = params.weight;
  output.weight_out = dgrad ? params.weight.stride_c : params.weight.stride_n;
  output.weight_in = dgrad ? params.weight.stride_n : params.weight.stride_c;
  output.output = params.output;
  output.r = problem.r;
  output.s = problem.s;
  output.columns = static_cast<int>(columns);
  output.row_step = problem.dilation_h;
  output.column_step = problem.dilation_w;
  output.flipped = dgrad;
  const int reach_h = (problem.r - 1) * problem.dilation_h, reach_w = (problem.s - 1) * problem.dilation_w;
  output.first_h = dgrad ? problem.pad_top - reach_h : -problem.pad_top;
  output.first_w = dgrad ? problem.pad_left - reach_w : -problem.pad_left;

  // The tile whose box has the fewest pixels for what it writes, and that leaves work to the whole chip.
  const int64_t capacity = (kThinArenaBytes - kThinOutputWeights * 2) / 4 / columns;
  const int64_t chip_blocks = 2 * int64_t{chip.sm_count};
  int64_t best_cost = 0, tiles = 0;
  for (int64_t cuts = 1; cuts <= 1024 && cuts <= output.out_w; cuts = cuts < 16 ? cuts + 1 : cuts * 2) {
    const int64_t w = ceil_div(output.out_w, cuts);
    for (int64_t h = std::min<int64_t>(output.out_h, 32); h >= 1; h = h == 1 ? 0 : ceil_div(h, 2)) {
      const int64_t positions =
          ceil_div((h + reach_h) * (w + reach_w), kThinOutputPixels) * kThinOutputPixels;
      const int64_t pitch = congruent(positions, 4, 32);
      if (pitch > capacity) continue;
      const int64_t count = problem.n * ceil_div(output.out_h, h) * ceil_div(output.out_w, w);
      const int64_t cost = ceil_div(count, chip_blocks) * (positions + kThinOutputPixels);
      if (tiles != 0 && cost >= best_cost) continue;
      best_cost = cost;
      tiles = count;
      output.tile_h = static_cast<int>(h);
      output.tile_w = static_cast<int>(w);
      output.positions = static_cast<int>(positions);
      output.pitch = static_cast<int>(pitch);
    }
  }
  if (tiles == 0 || tiles > kMostIndex) return std::nullopt;
  output.box_h = output.tile_h + reach_h;
  output.box_columns = FastDiv(output.tile_w + reach_w);
  output.tile_columns = FastDiv(output.tile_w);
  output.tiles_h = FastDiv(static_cast<int>(ceil_div(output.out_h, output.tile_h)));
  output.tiles_w = FastDiv(static_cast<int>(ceil_div(output.out_w, output.tile_w)));
  output.channel_div = FastDiv(output.channels);
  output.filter_div = FastDiv(output.filters);
  output.s_div = FastDiv(problem.s);
  output.tiles = static_cast<int>(tiles);
  output.tiles_per_block = static_cast<int>(ceil_div(tiles, 2 * chip_blocks));
  plan.grid = ceil_div(tiles, output.tiles_per_block);
  plan.threads = kThinThreads;
  plan.shared_bytes = kThinArenaBytes;
  plan.tile = std::to_string(output.tile_h) + "x" + std::to_string(output.tile_w) + " pixels x " +
              std::to_string(output.filters) + " channels";
  plan.reason =
      std::string("up to 8 output channels: every pixel times the weights of all taps on tensor cores, ") +
      (dgrad ? "dy" : "x") + " in 16-byte loads";
  return plan;
}

}  // namespace

std::optional<ThinPlan> plan_thin(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  if (params.dtype == DType::kFloat64 || problem.groups != 1 ||
      chip.shared_bytes_per_block < kThinArenaBytes + kTableBytes) {
    return std::nullopt;
  }
  // An empty batch or image is the generic path's.
  for (const int extent : {problem.n, problem.c, problem.k, problem.h, problem.w, problem.p, problem.q}) {
    if (extent < 1) return std::nullopt;
  }
  // Rows and columns past the image, by padding or dilation, and elements of a row must not overflow.
  for (const int extent : {problem.pad_top, problem.pad_left, problem.dilation_h, problem.dilation_w,
                           problem.stride_h, problem.stride_w, problem.w, problem.q}) {
    if (extent > 1 << 20) return std::nullopt;
  }
  if (pass == Conv2dPass::kDgrad || (pass == Conv2dPass::kFprop && problem.c > kMostChannels)) {
    std::optional<ThinPlan> plan = plan_output(pass, params, chip);
    if (!plan) plan = plan_thin_output_rows(pass, params, chip);
    return plan ? plan : plan_thin_output_box(pass, params, chip);
  }
  if (problem.c > kMostChannels) {
    const std::optional<Conv2dParams> exchanged = exchange(params);
    return exchanged ? plan_wgrad(*exchanged, true, chip) : std::nullopt;
  }
  if (int64_t{problem.c} * problem.r * problem.s > kThinMaxReduction) return std::nullopt;
  if (pass == Conv2dPass::kFprop) return plan_fprop(params, chip);
  return plan_wgrad(params, false, chip);
}

void launch_thin(Conv2dPass pass, const Conv2dParams& params, const ThinPlan& plan, cudaStream_t stream) {
  const auto visit = [&](auto&& f) {
    if (params.dtype == DType::kFloat16) return f(TypeTag<__half>{});
    return f(TypeTag<__nv_bfloat16>{});
  };
  if (plan.few_outputs && !plan.tensor_cores) {
    visit_narrow_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      thin::launch_output_box<T>(plan.output_box, plan, stream);
    });
    return;
  }
  if (plan.few_outputs) {
    visit([&](auto tag) {
      using T = typename decltype(tag)::type;
      if (plan.rows_reduced) return thin::launch_output_rows<T>(plan.output_rows, plan, stream);
      thin::launch_output_mma<T>(plan.output, plan, stream);
    });
    return;
  }
  if (pass == Conv2dPass::kFprop) {
    if (!plan.tensor_cores) return thin::launch_fprop<float>(plan.fprop, plan, stream);
    visit([&](auto tag) {
      using T = typename decltype(tag)::type;
      thin::launch_fprop_mma<T>(plan.fprop, plan, stream);
    });
    return;
  }
  ThinWgradParams wgrad = plan.wgrad;
  if (plan.splits > 1) wgrad.partials = static_cast<float*>(params.workspace);
  if (plan.tensor_cores) {
    visit([&](auto tag) {
      using T = typename decltype(tag)::type;
      thin::launch_wgrad_mma<T>(wgrad, plan, stream);
    });
  } else {
    thin::launch_wgrad<float>(wgrad, plan, stream);
  }
  if (plan.splits == 1) return;
  SplitSumParams sum;
  sum.partials = wgrad.partials;
  sum.output = wgrad.output;
  sum.dtype = params.dtype;
  sum.splits = plan.splits;
  sum.n = wgrad.filters;
  sum.c = wgrad.channels;
  sum.h = params.problem.r;
  sum.w = params.problem.s;
  if (params.bias_grad != nullptr) {
    sum.tail_output = params.bias_grad;
    sum.tail = wgrad.exchanged ? wgrad.channels : wgrad.filters;
  }
  launch_split_sum(sum, stream);
}

}  // namespace fastcnn
