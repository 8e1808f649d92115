// Tile, vector width and splits of the generic convolution, and the numbers its kernels are launched with.
#include <algorithm>
#include <numeric>

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

// What follows from the extent of the product and the image whose pixels are counted.
void set_product(GenericParams& result, const Extent& extent, int height, int width, const Conv2dPlan& plan) {
  const TileShape& tile = tile_shape(plan.tile);
  result.rows = extent.rows;
  result.columns = static_cast<int>(extent.columns);
  result.reduction = extent.reduction;
  result.row_tiles = divisor(ceil_div(extent.rows, tile.rows));
  result.column_tiles = divisor(ceil_div(extent.columns, tile.columns));
  result.image_width = divisor(width);
  result.image_pixels = divisor(int64_t{height} * width);
}

void set_taps(GenericParams& result, int r, int s) {
  result.r = r;
  result.s = s;
  result.inner_s = divisor(s);
  result.inner_rs = divisor(int64_t{r} * s);
}

// fprop and wgrad; dgrad's phases start from this.
GenericParams make_params(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
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
  result.image_h = dgrad ? problem.p : problem.h;
  result.image_w = dgrad ? problem.q : problem.w;
  result.pixel_h = problem.stride_h;
  result.pixel_w = problem.stride_w;
  result.first_h = -problem.pad_top;
  result.first_w = -problem.pad_left;
  result.tap_h = problem.dilation_h;
  result.tap_w = problem.dilation_w;
  // The order of (r, s, c) follows the tensor that is gathered: neighbouring steps then touch neighbours.
  result.channels_inner = plan.vectorized || result.input.stride_c == 1;
  result.vector_store = false;
  result.splits = plan.splits;
  result.split_length = plan.split_length;
  result.group_count = divisor(problem.groups);
  result.inner_channels = divisor(dgrad ? problem.filters_per_group() : problem.channels_per_group());
  set_taps(result, problem.r, problem.s);
  set_product(result, extent_of(pass, problem), problem.p, problem.q, plan);
  return result;
}

bool can_store_vectors(const GenericParams& params, int n, int height, int width) {
  const int bytes = dtype_size(params.dtype);
  return bytes < 8 && params.columns % 4 == 0 && channels_align(params.output, n, height, width, 4, bytes);
}

// One axis of a phase of dgrad: the input positions first, first + stride, ... and the taps that reach them.
// Position number i gets from tap number j what stands at i + origin - j * dilation of the output gradient.
struct Phase {
  int first, count;
  int first_tap, tap_step, taps;
  int origin, dilation;
};

// Tap r reaches position x if stride divides x + pad - r * dilation; such taps lie stride / gcd apart.
Phase phase_of(int first, int size, int stride, int pad, int dilation, int taps) {
  const int common = std::gcd(stride, dilation);
  Phase phase{};
  phase.first = first;
  phase.count = (size - first + stride - 1) / stride;
  phase.tap_step = stride / common;
  phase.dilation = dilation / common;
  for (int r = 0; r < std::min(phase.tap_step, taps); ++r) {
    const int distance = first + pad - r * dilation;
    if (distance % stride != 0) continue;
    phase.first_tap = r;
    phase.taps = (taps - 1 - r) / phase.tap_step + 1;
    phase.origin = distance / stride;
    break;
  }
  return phase;
}

void* advance(void* data, int64_t elements, DType dtype) {
  return static_cast<char*>(data) + elements * dtype_size(dtype);
}

// dgrad of one phase as a dgrad of stride 1: of every stride-th pixel, over every tap_step-th tap.
GenericParams phase_params(const GenericParams& whole, const Conv2dProblem& problem, const Phase& h,
                           const Phase& w, const Conv2dPlan& plan) {
  GenericParams result = whole;
  result.pixel_h = result.pixel_w = 1;
  result.first_h = h.origin;
  result.first_w = w.origin;
  result.tap_h = -h.dilation;
  result.tap_w = -w.dilation;
  result.output.data = advance(
      result.output.data, h.first * result.output.stride_h + w.first * result.output.stride_w, result.dtype);
  result.output.stride_h *= problem.stride_h;
  result.output.stride_w *= problem.stride_w;
  result.weight.data =
      advance(result.weight.data, h.first_tap * result.weight.stride_h + w.first_tap * result.weight.stride_w,
              result.dtype);
  result.weight.stride_h *= h.tap_step;
  result.weight.stride_w *= w.tap_step;
  set_taps(result, h.taps, w.taps);
  const Extent extent{int64_t{problem.n} * h.count * w.count, problem.channels_per_group(),
                      int64_t{h.taps} * w.taps * problem.filters_per_group()};
  set_product(result, extent, h.count, w.count, plan);
  result.vector_store = can_store_vectors(result, problem.n, h.count, w.count);
  return result;
}

template <class F>
void for_each_phase(const Conv2dProblem& problem, F&& f) {
  for (int h = 0; h < std::min(problem.stride_h, problem.h); ++h) {
    const Phase rows =
        phase_of(h, problem.h, problem.stride_h, problem.pad_top, problem.dilation_h, problem.r);
    for (int w = 0; w < std::min(problem.stride_w, problem.w); ++w) {
      f(rows, phase_of(w, problem.w, problem.stride_w, problem.pad_left, problem.dilation_w, problem.s));
    }
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
  plan.grid = tiles * plan.splits;
  check_indexable(plan.grid, "the number of tiles");
  if (pass == Conv2dPass::kDgrad) {
    plan.launches = std::min(problem.stride_h, problem.h) * std::min(problem.stride_w, problem.w);
  }
  plan.threads = kTileThreads;
  plan.shared_bytes = 2 * tile.depth * (tile.rows + tile.columns + 2 * kTilePad) * accumulator_size;
}

void launch_generic(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan,
                    cudaStream_t stream) {
  GenericParams generic_params = make_params(pass, params, plan);
  const Conv2dProblem& problem = params.problem;
  visit_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (pass) {
      case Conv2dPass::kFprop:
        generic_params.vector_store = can_store_vectors(generic_params, problem.n, problem.p, problem.q);
        generic::launch_fprop<T>(generic_params, plan, stream);
        return;
      case Conv2dPass::kDgrad:
        for_each_phase(problem, [&](const Phase& h, const Phase& w) {
          generic::launch_dgrad<T>(phase_params(generic_params, problem, h, w, plan), plan, stream);
        });
        return;
      case Conv2dPass::kWgrad:
        generic::launch_wgrad<T>(generic_params, plan, stream);
        return;
    }
  });
}

}  // namespace fastcnn
