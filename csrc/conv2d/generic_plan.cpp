// Tile, vector width and splits of the generic convolution, and the numbers its kernels are launched with.
#include <algorithm>
#include <numeric>
#include <utility>

#include "common/ceil_div.h"
#include "conv2d/generic.h"

namespace fastcnn {
namespace {

// A split shorter than this many reduction steps spends its time on the tile's ends.
constexpr int kLeastSplitSteps = 8;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;

struct Extent {
  int64_t rows, columns, reduction;
};

Extent extent_of(Conv2dPass pass, const Conv2dProblem& problem) {
  const int64_t taps = int64_t{problem.r} * problem.s;
  switch (pass) {
    case Conv2dPass::kFprop:
      return {problem.output_pixels(), problem.filters_per_group(), taps * problem.channels_per_group()};
    case Conv2dPass::kDgrad:
      // Of the first phase of the stride, the largest.
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

}  // namespace

void plan_generic(Conv2dPass pass, const Conv2dParams& params, const Chip& chip, Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const Extent extent = extent_of(pass, problem);

  plan.vectorized = can_vectorize(pass, params);
  const int64_t row_tiles = ceil_div(extent.rows, kWideTileShape.rows);
  const auto tiles_of = [&](int columns) {
    return row_tiles * ceil_div(extent.columns, columns) * problem.groups;
  };
  // A wide tile reads a quarter of the operands per result, but must have the columns, and the blocks to fill
  // the chip; wgrad gets blocks from its splits.
  const bool enough_blocks = pass == Conv2dPass::kWgrad || tiles_of(kWideTileShape.columns) >= chip.sm_count;
  const bool wide =
      extent.columns > 2 * kNarrowTileShape.columns && enough_blocks && params.dtype != DType::kFloat64;
  plan.tile = wide ? Conv2dTile::kWide : Conv2dTile::kNarrow;
  const TileShape& tile = tile_shape(plan.tile);
  const int64_t tiles = tiles_of(tile.columns);
  const int accumulator_size = params.dtype == DType::kFloat64 ? 8 : 4;

  plan.splits = 1;
  plan.split_length = std::max<int64_t>(extent.reduction, 1);
  if (pass == Conv2dPass::kWgrad && extent.reduction > 0 && tiles > 0) {
    const int64_t partial_bytes =
        int64_t{problem.k} * (extent.columns + (params.bias_grad != nullptr ? 1 : 0)) * accumulator_size;
    const int64_t steps = ceil_div(extent.reduction, tile.depth);
    const int64_t wanted = ceil_div(4 * int64_t{chip.sm_count}, tiles);  // two blocks an SM, twice over
    const int64_t splits = std::clamp<int64_t>(
        wanted, 1, std::max<int64_t>(1, std::min(steps / kLeastSplitSteps, kMostWorkspace / partial_bytes)));
    // Within a split, pixels are counted in 32 bits from the start of its first image.
    const int64_t reach = (int64_t{1} << 31) - 2 * tile.depth - int64_t{problem.p} * problem.q;
    const int64_t least = ceil_div(extent.reduction, std::min(int64_t{1} << 29, reach));
    plan.split_length = ceil_div(steps, std::max(splits, least)) * tile.depth;
    plan.splits = static_cast<int>(ceil_div(extent.reduction, plan.split_length));
    if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(plan.splits * partial_bytes);
  }
  if (pass == Conv2dPass::kDgrad) plan.phases = phase_count(problem);
  plan.grid = tiles * plan.splits * plan.phases;
  check_indexable(plan.grid, "the number of tiles");
  plan.threads = kTileThreads;
  plan.shared_bytes = 2 * tile.depth * (tile.rows + tile.columns + 2 * kTilePad) * accumulator_size;
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
