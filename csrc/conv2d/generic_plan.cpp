// Tile, vector width and splits of the generic convolution, and the numbers its kernels are launched with.
#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "conv2d/generic.h"
#include "conv2d/launch_size.h"

namespace fastcnn {
namespace {

constexpr int kTileRows = 128, kWideColumns = 128, kNarrowColumns = 32, kTileThreads = 256;
constexpr int kWideDepth = 8, kNarrowDepth = 16;
// A split shorter than this many reduction steps spends its time on the tile's ends.
constexpr int kLeastSplitSteps = 8;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;

bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Vectors of channels can be read from the tensor: contiguous channels, and every vector on its boundary.
bool channel_vectors(const TensorView& view, int vector, int element_size) {
  return view.stride_c == 1 && view.stride_n % vector == 0 && view.stride_h % vector == 0 &&
         view.stride_w % vector == 0 && aligned(view.data, vector * element_size);
}

struct Extent {
  int64_t rows, columns, reduction;
};

Extent extent_of(Conv2dPass pass, const Conv2dProblem& problem) {
  const int64_t taps = int64_t{problem.r} * problem.s;
  switch (pass) {
    case Conv2dPass::kFprop:
      return {problem.output_pixels(), problem.filters_per_group(), taps * problem.channels_per_group()};
    case Conv2dPass::kDgrad:
      return {problem.input_pixels(), problem.channels_per_group(), taps * problem.filters_per_group()};
    case Conv2dPass::kWgrad:
      break;
  }
  return {problem.filters_per_group(), taps * problem.channels_per_group(), problem.output_pixels()};
}

// Indices inside a tile's reach are 32-bit; only the pixel count as a whole may be larger.
void check_fits(int64_t value, const char* what) {
  constexpr int64_t kLimit = (int64_t{1} << 31) - (int64_t{1} << 22);
  if (value > kLimit) {
    throw std::runtime_error(std::string("fastcnn conv2d: ") + what + " is " + std::to_string(value) +
                             ", more than kernels can index");
  }
}

bool can_vectorize(Conv2dPass pass, const Conv2dParams& params) {
  const int element_size = dtype_size(params.dtype);
  if (element_size == 8) return false;
  const int vector = 16 / element_size;
  const bool channels_fit = params.problem.channels_per_group() % vector == 0;
  const bool filters_fit = params.problem.filters_per_group() % vector == 0;
  switch (pass) {
    case Conv2dPass::kFprop:
      return channels_fit && channel_vectors(params.input, vector, element_size) &&
             channel_vectors(params.weight, vector, element_size);
    case Conv2dPass::kDgrad:
      return channels_fit && filters_fit && channel_vectors(params.grad, vector, element_size) &&
             channel_vectors(params.weight, vector, element_size);
    case Conv2dPass::kWgrad:
      break;
  }
  return channels_fit && filters_fit && channel_vectors(params.grad, vector, element_size) &&
         channel_vectors(params.input, vector, element_size);
}

// The order of (r, s, c) follows the tensor that is gathered: neighbouring reduction steps then touch
// neighbours.
bool reduce_channels_first(Conv2dPass pass, const Conv2dParams& params) {
  return (pass == Conv2dPass::kDgrad ? params.grad : params.input).stride_c == 1;
}

GenericParams make_params(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const Extent extent = extent_of(pass, problem);
  const int tile_columns = plan.tile == Conv2dTile::kWide ? kWideColumns : kNarrowColumns;
  const auto divisor = [](int64_t value) { return FastDiv(static_cast<int>(std::max<int64_t>(value, 1))); };

  GenericParams result;
  result.problem = problem;
  result.dtype = params.dtype;
  result.input = params.input;
  result.weight = params.weight;
  result.grad = params.grad;
  result.output = params.output;
  result.bias = params.bias;
  result.workspace = params.workspace;
  result.activation = params.activation;
  result.channels_inner = plan.vectorized || reduce_channels_first(pass, params);
  result.vector_store = pass != Conv2dPass::kWgrad && extent.columns % 4 == 0 &&
                        channel_vectors(params.output, 4, dtype_size(params.dtype)) &&
                        dtype_size(params.dtype) < 8;
  result.splits = plan.splits;
  result.columns = static_cast<int>(extent.columns);
  result.rows = extent.rows;
  result.reduction = extent.reduction;
  result.split_length = plan.split_length;
  result.row_tiles = divisor(ceil_div(extent.rows, kTileRows));
  result.column_tiles = divisor(ceil_div(extent.columns, tile_columns));
  result.group_count = divisor(problem.groups);
  const int inner = pass == Conv2dPass::kDgrad ? problem.filters_per_group() : problem.channels_per_group();
  result.inner_channels = divisor(inner);
  result.inner_s = divisor(problem.s);
  result.inner_rs = divisor(int64_t{problem.r} * problem.s);
  const bool over_input = pass == Conv2dPass::kDgrad;
  const int height = over_input ? problem.h : problem.p, width = over_input ? problem.w : problem.q;
  result.image_width = divisor(width);
  result.image_pixels = divisor(int64_t{height} * width);
  result.stride_h = divisor(problem.stride_h);
  result.stride_w = divisor(problem.stride_w);
  return result;
}

}  // namespace

void plan_generic(Conv2dPass pass, const Conv2dParams& params, const Chip& chip, Conv2dPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const Extent extent = extent_of(pass, problem);
  check_fits(int64_t{problem.h} * problem.w, "an input image's pixel count");
  check_fits(int64_t{problem.p} * problem.q, "an output image's pixel count");
  check_fits(int64_t{problem.r} * problem.s * problem.channels_per_group(), "channels * kernel size");
  check_fits(int64_t{problem.r} * problem.s * problem.filters_per_group(), "filters * kernel size");

  plan.vectorized = can_vectorize(pass, params);
  const int64_t row_tiles = ceil_div(extent.rows, kTileRows);
  const auto tiles_of = [&](int columns) {
    return row_tiles * ceil_div(extent.columns, columns) * problem.groups;
  };
  // A wide tile reads a quarter of the operands per result, but must have the columns, and the blocks to fill
  // the chip; wgrad gets blocks from its splits.
  const bool enough_blocks = pass == Conv2dPass::kWgrad || tiles_of(kWideColumns) >= chip.sm_count;
  const bool wide = extent.columns > 2 * kNarrowColumns && enough_blocks && params.dtype != DType::kFloat64;
  plan.tile = wide ? Conv2dTile::kWide : Conv2dTile::kNarrow;
  const int columns = wide ? kWideColumns : kNarrowColumns;
  const int depth = wide ? kWideDepth : kNarrowDepth;
  const int64_t tiles = tiles_of(columns);
  const int accumulator_size = params.dtype == DType::kFloat64 ? 8 : 4;

  plan.splits = 1;
  plan.split_length = std::max<int64_t>(extent.reduction, 1);
  if (pass == Conv2dPass::kWgrad && extent.reduction > 0 && tiles > 0) {
    const int64_t partial_bytes =
        std::max<int64_t>(int64_t{problem.k} * extent.columns * accumulator_size, 1);
    const int64_t steps = ceil_div(extent.reduction, depth);
    const int64_t wanted = ceil_div(4 * int64_t{chip.sm_count}, tiles);  // two blocks an SM, twice over
    const int64_t splits = std::clamp<int64_t>(
        wanted, 1, std::max<int64_t>(1, std::min(steps / kLeastSplitSteps, kMostWorkspace / partial_bytes)));
    // A split also may not outgrow 32-bit indices.
    const int64_t least = ceil_div(extent.reduction, int64_t{1} << 29);
    plan.split_length = ceil_div(steps, std::max(splits, least)) * depth;
    plan.splits = static_cast<int>(ceil_div(extent.reduction, plan.split_length));
    if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(plan.splits * partial_bytes);
  }
  plan.grid = tiles * plan.splits;
  check_fits(plan.grid, "the number of tiles");
  check_fits(int64_t{problem.k} * problem.channels_per_group() * problem.r * problem.s,
             "the weight's element count");
  plan.threads = kTileThreads;
  constexpr int kPad = 4;
  plan.shared_bytes = 2 * depth * (kTileRows + kPad + columns + kPad) * accumulator_size;
}

void launch_generic(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan,
                    cudaStream_t stream) {
  const GenericParams generic_params = make_params(pass, params, plan);
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
