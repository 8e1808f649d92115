// Tile, vector width and splits of the generic convolution, and the numbers its kernels are launched with.
#include <algorithm>
#include <numeric>
#include <utility>

#include "common/ceil_div.h"
#include "conv2d/generic.h"

namespace fastcnn {
namespace {

// A split shorter than this many reduction steps spends its time on the tile's ends; deep steps count as
// several.
constexpr int kLeastSplitSteps = 8, kSplitStep = 16;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;

// The estimates that choose between tiles, and whether to split, count SM cycles. They come from the kernels'
// instructions and from published latencies, not from measurements: only their order matters.
struct TileCost {
  int fma_per_cycle;  // an SM's, of 128: what shared loads, gathering and, of deep steps, latency leave
  int step;           // the reduction costs whole multiples of this
};
constexpr TileCost tile_cost(Conv2dTile tile) {
  switch (tile) {
    case Conv2dTile::kWide:
      return {100, kWideTileShape.depth};
    case Conv2dTile::kNarrow:
      return {75, kNarrowTileShape.depth};
    case Conv2dTile::kSmall:
      return {60, 8};
    case Conv2dTile::kTiny:
      break;
  }
  return {40, 8};
}
constexpr int64_t kTileEnds = 2000;            // a block's first loads and its epilogue
constexpr int64_t kSecondLaunch = 4000;        // over 2 us
constexpr int64_t kPartialBytesPerCycle = 32;  // of an SM, written and read again

struct Extent {
  int64_t rows, columns, reduction;
};

Extent extent_of(Conv2dPass pass, const Conv2dProblem& problem) {
  const int64_t taps = int64_t{problem.r} * problem.s;
  switch (pass) {
    case Conv2dPass::kFprop:
      return {problem.output_pixels(), problem.filters_per_group(), taps * problem.channels_per_group()};
    case Conv2dPass::kDgrad:
      // Rows of the first phase of the stride, the largest.
      return {
          int64_t{problem.n} * ceil_div(problem.h, problem.stride_h) * ceil_div(problem.w, problem.stride_w),
          problem.channels_per_group(), taps * problem.filters_per_group()};
    case Conv2dPass::kWgrad:
      break;
  }
  return {problem.filters_per_group(), taps * problem.channels_per_group(), problem.output_pixels()};
}

bool can_vectorize(Conv2dPass pass, const Conv2dParams& params) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  if (bytes == 8) return false;
  const int vector = 16 / bytes;
  const bool channels_fit = problem.channels_per_group() % vector == 0;
  const bool filters_fit = problem.filters_per_group() % vector == 0;
  const auto weight = [&] {
    return channels_align(params.weight, problem.k, problem.r, problem.s, vector, bytes);
  };
  const auto input = [&] {
    return channels_align(params.input, problem.n, problem.h, problem.w, vector, bytes);
  };
  const auto grad = [&] {
    return channels_align(params.grad, problem.n, problem.p, problem.q, vector, bytes);
  };
  switch (pass) {
    case Conv2dPass::kFprop:
      return channels_fit && input() && weight();
    case Conv2dPass::kDgrad:
      return channels_fit && filters_fit && grad() && weight();
    case Conv2dPass::kWgrad:
      break;
  }
  return channels_fit && filters_fit && grad() && input();
}

FastDiv divisor(int64_t value) {
  return FastDiv(static_cast<int>(std::max<int64_t>(value, 1)));
}

// Positions of an axis that a stride makes the first of a phase.
int phase_count(int size, int stride) {
  return std::min(size, stride);
}

int64_t phase_count(const Conv2dProblem& problem) {
  return int64_t{phase_count(problem.h, problem.stride_h)} * phase_count(problem.w, problem.stride_w);
}

// About how many of them have taps.
int64_t working_phases(const Conv2dProblem& problem) {
  const auto of_axis = [](int size, int stride, int dilation, int taps) {
    return int64_t{std::min({size, stride / std::gcd(stride, dilation), taps})};
  };
  return of_axis(problem.h, problem.stride_h, problem.dilation_h, problem.r) *
         of_axis(problem.w, problem.stride_w, problem.dilation_w, problem.s);
}

// x with value * x = 1 modulo `modulus`, which value is prime to.
int inverse(int value, int modulus) {
  int64_t before = modulus, rest = value % modulus, x_before = 0, x = 1;
  while (rest != 0) {
    const int64_t quotient = before / rest;
    before = std::exchange(rest, before - quotient * rest);
    x_before = std::exchange(x, x_before - quotient * x);
  }
  return static_cast<int>((x_before + modulus) % modulus);
}

PhaseAxis phase_axis(int size, int stride, int pad, int dilation, int taps, int64_t output_stride,
                     int64_t weight_stride) {
  const int common = std::gcd(stride, dilation), tap_step = stride / common;
  PhaseAxis axis;
  axis.phases = phase_count(size, stride);
  axis.rotation = stride <= size ? (stride - pad % stride) % stride : 0;
  axis.long_phases = size % stride;
  axis.least_count = size / stride;
  axis.pad = pad;
  axis.dilation = dilation;
  axis.stride = stride;
  axis.common = divisor(common);
  axis.tap_step = divisor(tap_step);
  axis.inverse = inverse(dilation / common, tap_step);
  axis.long_tap_phases = taps % tap_step;
  axis.least_taps = taps / tap_step;
  axis.output_stride = output_stride;
  axis.weight_stride = weight_stride;
  return axis;
}

// The FastDivs of a phase, or of a pass without phases: `fewer` is 2 * h + w.
void set_pixels(GenericParams& result, int fewer, int height, int width) {
  result.image_width[fewer % 2] = divisor(width);
  result.image_pixels[fewer] = divisor(int64_t{height} * width);
}

void set_taps(GenericParams& result, int fewer, int r, int s) {
  result.inner_s[fewer % 2] = divisor(s);
  result.inner_rs[fewer] = divisor(int64_t{r} * s);
}

bool can_store_vectors(const GenericParams& params, int n, int height, int width) {
  const int bytes = dtype_size(params.dtype);
  return bytes < 8 && params.columns % 4 == 0 && channels_align(params.output, n, height, width, 4, bytes);
}

GenericParams make_params(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const Extent extent = extent_of(pass, problem);
  const TileShape& tile = tile_shape(plan.tile);
  GenericParams result;
  result.input = dgrad ? params.grad : params.input;
  result.weight = params.weight;
  result.grad = params.grad;
  result.output = params.output;
  result.workspace = params.workspace;
  if (pass == Conv2dPass::kFprop) result.epilogue = params.epilogue;
  if (pass != Conv2dPass::kFprop) result.grad_activation = params.grad_activation;
  result.bias_grad = pass == Conv2dPass::kWgrad ? params.bias_grad : nullptr;
  result.dtype = params.dtype;
  result.filters = problem.k;
  result.group_filters = problem.filters_per_group();
  result.r = problem.r;
  result.s = problem.s;
  result.image_h = dgrad ? problem.p : problem.h;
  result.image_w = dgrad ? problem.q : problem.w;
  result.pixel_h = dgrad ? 1 : problem.stride_h;
  result.pixel_w = dgrad ? 1 : problem.stride_w;
  result.first_h = dgrad ? problem.pad_top : -problem.pad_top;
  result.first_w = dgrad ? problem.pad_left : -problem.pad_left;
  result.tap_h = dgrad ? -problem.dilation_h : problem.dilation_h;
  result.tap_w = dgrad ? -problem.dilation_w : problem.dilation_w;
  // The order of (r, s, c) follows the tensor that is gathered: neighbouring steps then touch neighbours.
  result.channels_inner = plan.vectorized || result.input.stride_c == 1;
  result.splits = plan.splits;
  result.split_length = plan.split_length;
  result.rows = extent.rows;
  result.columns = static_cast<int>(extent.columns);
  result.reduction = extent.reduction;
  result.row_tiles = divisor(ceil_div(extent.rows, tile.rows));
  result.column_tiles = divisor(ceil_div(extent.columns, tile.columns));
  result.group_count = divisor(problem.groups);
  result.inner_channels = divisor(dgrad ? problem.filters_per_group() : problem.channels_per_group());
  result.strided = false;
  set_taps(result, 0, problem.r, problem.s);
  if (dgrad) {
    set_pixels(result, 0, problem.h, problem.w);
    result.parts = 1;
    result.vector_store = can_store_vectors(result, problem.n, problem.h, problem.w);
  } else {
    set_pixels(result, 0, problem.p, problem.q);
    result.parts = plan.splits;
    result.vector_store =
        pass == Conv2dPass::kFprop && can_store_vectors(result, problem.n, problem.p, problem.q);
  }
  return result;
}

// dgrad's parameters for stride 1 become those of the phases of its stride.
void cut_into_phases(GenericParams& result, const Conv2dProblem& problem, const Conv2dPlan& plan) {
  result.strided = true;
  result.parts = plan.phases;
  result.images = problem.n;
  result.phase_count_w = divisor(phase_count(problem.w, problem.stride_w));
  TensorView &output = result.output, &weight = result.weight;
  const PhaseAxis& h = result.phase_h =
      phase_axis(problem.h, problem.stride_h, problem.pad_top, problem.dilation_h, problem.r, output.stride_h,
                 weight.stride_h);
  const PhaseAxis& w = result.phase_w =
      phase_axis(problem.w, problem.stride_w, problem.pad_left, problem.dilation_w, problem.s,
                 output.stride_w, weight.stride_w);
  output.stride_h *= problem.stride_h;
  output.stride_w *= problem.stride_w;
  weight.stride_h *= h.tap_step.divisor();
  weight.stride_w *= w.tap_step.divisor();
  result.tap_h = -problem.dilation_h / h.common.divisor();
  result.tap_w = -problem.dilation_w / w.common.divisor();
  for (int fewer = 0; fewer < 4; ++fewer) {
    const int more_h = 1 - fewer / 2, more_w = 1 - fewer % 2;
    set_pixels(result, fewer, h.least_count + more_h, w.least_count + more_w);
    set_taps(result, fewer, h.least_taps + more_h, w.least_taps + more_w);
  }
}

int accumulator_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : 4;
}

int64_t tile_count(const Extent& extent, const TileShape& tile, int64_t products) {
  return ceil_div(extent.rows, tile.rows) * ceil_div(extent.columns, tile.columns) * products;
}

// Of `tiles` blocks that each walk `reduction`, two of them resident an SM.
int64_t estimated_cycles(Conv2dTile tile, int64_t tiles, int64_t reduction, const Chip& chip) {
  const TileShape& shape = tile_shape(tile);
  const TileCost cost = tile_cost(tile);
  const int64_t walked = ceil_div(reduction, cost.step) * cost.step;
  return ceil_div(tiles, chip.sm_count) * walked * shape.rows * shape.columns / cost.fma_per_cycle +
         ceil_div(tiles, 2 * int64_t{chip.sm_count}) * kTileEnds;
}

// A wide tile reads a quarter of the operands per result, but must have the columns, and the blocks to fill
// the chip. Where narrow tiles do not fill it either, or most of their rows would be empty, smaller ones may
// be better.
Conv2dTile tile_of(const Extent& extent, int64_t products, DType dtype, const Chip& chip) {
  if (dtype == DType::kFloat64) return Conv2dTile::kNarrow;
  const auto fills = [&](const TileShape& tile) {
    return extent.rows > kSmallTileShape.rows && tile_count(extent, tile, products) >= chip.sm_count;
  };
  if (extent.columns > 2 * kNarrowTileShape.columns && fills(kWideTileShape)) return Conv2dTile::kWide;
  if (fills(kNarrowTileShape)) return Conv2dTile::kNarrow;
  Conv2dTile best = Conv2dTile::kNarrow;
  int64_t least = 0;
  for (const Conv2dTile tile : {Conv2dTile::kNarrow, Conv2dTile::kSmall, Conv2dTile::kTiny}) {
    const int64_t tiles = tile_count(extent, tile_shape(tile), products);
    const int64_t cycles = estimated_cycles(tile, tiles, extent.reduction, chip);
    if (tile != Conv2dTile::kNarrow && cycles >= least) continue;
    best = tile;
    least = cycles;
  }
  return best;
}

// A split wgrad has blocks enough for large tiles, but few filters would leave most of a large one's rows
// empty, and of the small one's.
Conv2dTile split_tile(const Extent& extent, DType dtype) {
  if (dtype == DType::kFloat64) return Conv2dTile::kNarrow;
  if (extent.rows <= kTinyTileShape.rows) return Conv2dTile::kTiny;
  if (extent.rows <= kSmallTileShape.rows) return Conv2dTile::kSmall;
  return extent.columns > 2 * kNarrowTileShape.columns ? Conv2dTile::kWide : Conv2dTile::kNarrow;
}

// Cuts wgrad's reduction over the pixels, where that saves more than the second launch costs.
void split_wgrad(const Conv2dParams& params, const Extent& extent, const Chip& chip, Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const Conv2dTile tile = split_tile(extent, params.dtype);
  const TileShape& shape = tile_shape(tile);
  const int64_t tiles = tile_count(extent, shape, problem.groups);
  if (tiles == 0 || extent.reduction == 0) return;
  const int64_t partial_bytes = int64_t{problem.k} *
                                (extent.columns + (params.bias_grad != nullptr ? 1 : 0)) *
                                accumulator_size(params.dtype);
  const int64_t steps = ceil_div(extent.reduction, shape.depth);
  const int64_t wanted = ceil_div(4 * int64_t{chip.sm_count}, tiles);  // two blocks an SM, twice over
  const int64_t most = extent.reduction / (kLeastSplitSteps * std::min(shape.depth, kSplitStep));
  const int64_t splits =
      std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, std::min(most, kMostWorkspace / partial_bytes)));
  // Within a split, pixels are counted in 32 bits from the start of its first image.
  const int64_t reach = (int64_t{1} << 31) - 2 * kTinyTileShape.depth - int64_t{problem.p} * problem.q;
  const int64_t least = ceil_div(extent.reduction, std::min(int64_t{1} << 29, reach));
  const int64_t length = ceil_div(steps, std::max(splits, least)) * shape.depth;
  const int64_t count = ceil_div(extent.reduction, length);
  if (count == 1) return;
  plan.unsplit_cycles = estimated_cycles(plan.tile, tile_count(extent, tile_shape(plan.tile), problem.groups),
                                         extent.reduction, chip);
  plan.split_cycles = estimated_cycles(tile, tiles * count, length, chip) + kSecondLaunch +
                      2 * count * partial_bytes / (chip.sm_count * kPartialBytesPerCycle);
  if (least == 1 && plan.split_cycles >= plan.unsplit_cycles) return;
  plan.tile = tile;
  plan.splits = static_cast<int>(count);
  plan.split_length = length;
  plan.workspace_bytes = static_cast<size_t>(count * partial_bytes);
}

}  // namespace

void plan_generic(Conv2dPass pass, const Conv2dParams& params, const Chip& chip, Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const Extent extent = extent_of(pass, problem);
  plan.vectorized = can_vectorize(pass, params);
  if (pass == Conv2dPass::kDgrad) plan.phases = phase_count(problem);
  plan.split_length = std::max<int64_t>(extent.reduction, 1);

  Extent working = extent;
  int64_t products = problem.groups;
  if (pass == Conv2dPass::kDgrad) {
    const int64_t phases = working_phases(problem);
    products *= phases;
    working.reduction = ceil_div(extent.reduction, phases);
  }
  plan.tile = tile_of(working, products, params.dtype, chip);
  if (pass == Conv2dPass::kWgrad) split_wgrad(params, extent, chip, plan);

  const TileShape& tile = tile_shape(plan.tile);
  plan.grid = tile_count(extent, tile, problem.groups * plan.phases) * plan.splits;
  check_indexable(plan.grid, "the number of tiles");
  plan.threads = kTileThreads;
  plan.shared_bytes =
      2 * tile.depth * (tile.rows + tile.columns + 2 * kTilePad) * accumulator_size(params.dtype);
}

void launch_generic(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan,
                    cudaStream_t stream) {
  GenericParams generic_params = make_params(pass, params, plan);
  const Conv2dProblem& problem = params.problem;
  if (pass == Conv2dPass::kDgrad && (problem.stride_h > 1 || problem.stride_w > 1)) {
    cut_into_phases(generic_params, problem, plan);
  }
  visit_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (pass) {
      case Conv2dPass::kFprop:
        generic::launch_fprop<T>(generic_params, plan, stream);
        return;
      case Conv2dPass::kDgrad:
        generic::launch_dgrad<T>(generic_params, plan, stream);
        return;
      case Conv2dPass::kWgrad:
        generic::launch_wgrad<T>(generic_params, plan, stream);
        return;
    }
  });
}

}  // namespace fastcnn
