// What the 1x1 kernel covers, how its operands lie, its tile and splits.
#include <algorithm>
#include <array>
#include <utility>

#include "common/ceil_div.h"
#include "conv2d/pointwise.h"
#include "conv2d/split_sum.h"

namespace fastcnn {
namespace {

constexpr int64_t kMostWorkspace = int64_t{64} << 20;
constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int kElementBytes = 2;
constexpr int kSectorElements = 16;       // that memory brings together
constexpr int kLeastSplitElements = 256;  // of the reduction: less spends its time on the tile's ends

// n images of h x w elements with these strides, told with as few dimensions as the strides allow.
PointwiseAxis make_axis(int64_t n, int64_t h, int64_t w, int64_t stride_n, int64_t stride_h,
                        int64_t stride_w) {
  PointwiseAxis axis;
  axis.extent = static_cast<int>(n * h * w);
  if (w == 1) {
    w = std::exchange(h, 1);
    stride_w = stride_h;
  }
  if (h == 1 || stride_h == w * stride_w) {
    w *= std::exchange(h, 1);
    if (w == 1) {
      w = std::exchange(n, 1);
      stride_w = stride_n;
    }
    if (n == 1 || stride_n == w * stride_w) w *= std::exchange(n, 1);
  }
  axis.stride_n = n > 1 ? stride_n : 0;
  axis.stride_h = h > 1 ? stride_h : 0;
  axis.stride_w = w > 1 ? stride_w : 0;
  axis.image = FastDiv(static_cast<int>(h * w));
  axis.width = FastDiv(static_cast<int>(w));
  axis.line = n == 1 && h == 1;
  return axis;
}

PointwiseAxis channel_axis(int channels, int64_t stride) {
  return make_axis(1, 1, channels, 0, 0, stride);
}

// Every step_h-th row and step_w-th column.
PointwiseAxis pixel_axis(const TensorView& view, int n, int h, int w, int step_h = 1, int step_w = 1) {
  return make_axis(n, h, w, view.stride_n, view.stride_h * step_h, view.stride_w * step_w);
}

// How many elements, 8, 4 or 1, always lie side by side and aligned along an axis.
int vector_along(const PointwiseAxis& axis, const PointwiseAxis& other, const void* data,
                 const void* other_data = nullptr) {
  const auto address = reinterpret_cast<uintptr_t>(data) | reinterpret_cast<uintptr_t>(other_data);
  for (const int vector : {8, 4}) {
    bool aligned = axis.stride_w == 1 && axis.width.divisor() % vector == 0 &&
                   address % static_cast<uintptr_t>(vector * kElementBytes) == 0;
    for (const int64_t stride :
         {axis.stride_n, axis.stride_h, other.stride_n, other.stride_h, other.stride_w}) {
      aligned = aligned && stride % vector == 0;
    }
    if (aligned) return vector;
  }
  return 1;
}

// Whether every step-th pixel of a row, for any row, channel and image, begins an aligned word of two.
bool starts_words(const TensorView& view, int step) {
  bool aligned = view.stride_w == 1 && step % 2 == 0 &&
                 reinterpret_cast<uintptr_t>(view.data) % (2 * kElementBytes) == 0;
  for (const int64_t stride : {view.stride_n, view.stride_c, view.stride_h}) {
    aligned = aligned && stride % 2 == 0;
  }
  return aligned;
}

PointwiseOperand make_operand(const TensorView& view, const PointwiseAxis& row,
                              const PointwiseAxis& reduction, const GradActivation& activation = {}) {
  PointwiseOperand operand;
  operand.data = view.data;
  operand.activation = activation;
  operand.row = row;
  operand.reduction = reduction;
  return operand;
}

// Chooses how the tiles lie by how wide their loads are then; at equal width, what lies side by side in
// memory, or at least close, does so in the tile.
PointwiseLie choose_lie(PointwiseOperand& a, PointwiseOperand& b) {
  const auto vector = [](const PointwiseOperand& operand, bool across) {
    const PointwiseAxis& line = across ? operand.row : operand.reduction;
    return vector_along(line, across ? operand.reduction : operand.row, operand.data,
                        operand.activation.saved);
  };
  const auto worth = [&](const PointwiseOperand& operand, bool across) {
    const PointwiseAxis& line = across ? operand.row : operand.reduction;
    const int neighbours = line.stride_w == 1                                   ? 2
                           : line.extent > 1 && line.stride_w < kSectorElements ? 1
                                                                                : 0;
    return 3 * vector(operand, across) + neighbours;
  };
  PointwiseLie best = PointwiseLie::kBothAlong;
  int most = 0;
  for (const PointwiseLie lie :
       {PointwiseLie::kBothAlong, PointwiseLie::kAlongAcross, PointwiseLie::kBothAcross}) {
    const bool a_across = lie == PointwiseLie::kBothAcross, b_across = lie != PointwiseLie::kBothAlong;
    const int sum = worth(a, a_across) + worth(b, b_across);
    if (sum <= most) continue;
    most = sum;
    best = lie;
    a.vector = vector(a, a_across);
    b.vector = vector(b, b_across);
  }
  return best;
}

// The operands and the result of a pass, and how they lie.
PointwisePlan bind(Conv2dPass pass, const Conv2dParams& params) {
  const Conv2dProblem& problem = params.problem;
  const auto [n, p, q] = std::array{problem.n, problem.p, problem.q};
  const PointwiseAxis x_pixels = pixel_axis(params.input, n, p, q, problem.stride_h, problem.stride_w);
  const PointwiseAxis x_channels = channel_axis(problem.c, params.input.stride_c);
  const PointwiseAxis dy_pixels = pixel_axis(params.grad, n, p, q);
  const PointwiseAxis dy_filters = channel_axis(problem.k, params.grad.stride_c);
  const PointwiseAxis w_filters = channel_axis(problem.k, params.weight.stride_n);
  const PointwiseAxis w_channels = channel_axis(problem.c, params.weight.stride_c);

  PointwisePlan plan;
  PointwiseParams& result = plan.params;
  result.output = params.output.data;
  result.image_pixels = FastDiv(p * q);
  result.image_width = FastDiv(q);
  if (pass == Conv2dPass::kWgrad) {
    result.a = make_operand(params.grad, dy_filters, dy_pixels, params.grad_activation);
    result.b = make_operand(params.input, x_channels, x_pixels);
    result.out_row = channel_axis(problem.k, params.output.stride_n);
    result.out_column = channel_axis(problem.c, params.output.stride_c);
    result.reduction = n * p * q;
    result.bias_grad = params.bias_grad;
    result.store_vector = vector_along(result.out_column, result.out_row, result.output);
  } else {
    const bool dgrad = pass == Conv2dPass::kDgrad;
    PointwiseOperand pixels = dgrad ? make_operand(params.grad, dy_pixels, dy_filters, params.grad_activation)
                                    : make_operand(params.input, x_pixels, x_channels);
    PointwiseOperand weights = dgrad ? make_operand(params.weight, w_channels, w_filters)
                                     : make_operand(params.weight, w_filters, w_channels);
    const int channels = dgrad ? problem.c : problem.k;
    const PointwiseAxis out_channels = channel_axis(channels, params.output.stride_c);
    PointwiseAxis out_pixels = pixel_axis(params.output, n, p, q);
    result.reduction = dgrad ? problem.k : problem.c;
    result.epilogue = params.epilogue;
    // One channel alone is no column: its pixels are, as neighbours in memory.
    result.pixels_in_rows = params.output.stride_c == 1 && channels > 1;
    result.bias_vector = result.pixels_in_rows && reinterpret_cast<uintptr_t>(params.epilogue.bias) % 16 == 0;
    if (dgrad) {
      out_pixels = pixel_axis(params.output, n, p, q, problem.stride_h, problem.stride_w);
      // No larger than the image, whose pixels 32 bits count: a product of two strides may be past them.
      result.cell_h = std::min(problem.stride_h, problem.h);
      result.cell_w = std::min(problem.stride_w, problem.w);
      result.image_h = problem.h;
      result.image_w = problem.w;
      result.cell_stride_h = params.output.stride_h;
      result.cell_stride_w = params.output.stride_w;
    }
    result.a = result.pixels_in_rows ? pixels : weights;
    result.b = result.pixels_in_rows ? weights : pixels;
    result.out_row = result.pixels_in_rows ? out_pixels : out_channels;
    result.out_column = result.pixels_in_rows ? out_channels : out_pixels;
    result.store_vector = vector_along(result.out_column, result.out_row, result.output);
    if (dgrad && result.pixels_in_rows) {
      // Zeros are stored as the sums are, to pixels between theirs.
      const PointwiseAxis all = pixel_axis(params.output, n, problem.h, problem.w);
      result.store_vector = std::min(result.store_vector, vector_along(out_channels, all, result.output));
    } else if (dgrad && result.cell_h > 1 && params.output.stride_h % result.store_vector != 0) {
      result.store_vector = 1;
    }
    result.cell_pairs = dgrad && !result.pixels_in_rows && result.store_vector == 1 && problem.w % 2 == 0 &&
                        starts_words(params.output, problem.stride_w);
  }
  plan.lie = choose_lie(result.a, result.b);
  return plan;
}

struct TileChoice {
  PointwiseTile tile;
  int rows, columns;
  int64_t row_tiles, column_tiles;
  int splits;
  int64_t items() const { return row_tiles * column_tiles * splits; }
};

int shared_bytes(PointwiseTile tile, const PointwisePlan& plan) {
  const PointwiseTileShape& shape = pointwise_shape(tile);
  const auto stages = [&](int rows, bool across) {
    return kPointwiseStages *
           (across ? shape.depth * (rows + kPointwisePad) : rows * (shape.depth + kPointwisePad)) *
           kElementBytes;
  };
  const int a = stages(shape.rows, plan.lie == PointwiseLie::kBothAcross);
  const int b = stages(shape.columns, plan.lie != PointwiseLie::kBothAlong);
  const int saved = plan.params.a.activation.saved != nullptr   ? a
                    : plan.params.b.activation.saved != nullptr ? b
                                                                : 0;
  const int warp_sums = shape.depth_warps > 1 ? shape.threads() * (shape.rows / 8) * 9 : 0;
  return a + b + saved + warp_sums * static_cast<int>(sizeof(float));
}

// Blocks that run at once.
int64_t round_of(PointwiseTile tile, const PointwisePlan& plan, const Chip& chip) {
  constexpr int kReserved = 1024;  // of each block, by the hardware
  const int fit = (chip.shared_bytes_per_block + kReserved) / (shared_bytes(tile, plan) + kReserved);
  return int64_t{chip.sm_count} * std::min(pointwise_shape(tile).blocks, fit);
}

// Of the tiles that fit, the choice whose blocks read the least. Idle SMs count twice: few blocks also have
// less in flight.
std::optional<TileChoice> choose_tile(const PointwisePlan& plan, bool splittable, const Chip& chip) {
  const PointwiseParams& params = plan.params;
  const int64_t rows = params.out_row.extent, columns = params.out_column.extent;
  const int64_t partial_bytes =
      rows * (columns + (params.bias_grad != nullptr ? 1 : 0)) * static_cast<int64_t>(sizeof(float));
  const int64_t read_bytes = (rows + columns) * params.reduction * kElementBytes;
  TileChoice best{};
  double least = 0;
  const auto consider = [&](PointwiseTile tile, int tile_rows, int tile_columns) {
    if (shared_bytes(tile, plan) > chip.shared_bytes_per_block) return;
    TileChoice choice{
        tile, tile_rows, tile_columns, ceil_div(rows, tile_rows), ceil_div(columns, tile_columns), 1};
    const int64_t tiles = choice.items();
    if (splittable) {
      // One round of blocks; less, down to a block an SM, where partial sums would be more than a quarter of
      // what is read.
      const int64_t round = round_of(tile, plan, chip) / tiles;
      const int64_t wanted =
          std::min(round, std::max(ceil_div(chip.sm_count, tiles), read_bytes / 4 / partial_bytes));
      const int64_t most =
          std::min<int64_t>(params.reduction / kLeastSplitElements, kMostWorkspace / partial_bytes);
      choice.splits = static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
    }
    double bytes = static_cast<double>(params.reduction) * kElementBytes *
                   static_cast<double>(rows * choice.column_tiles + columns * choice.row_tiles);
    if (choice.splits > 1) bytes += 2.0 * static_cast<double>(partial_bytes) * choice.splits;
    const double busy = std::min(1.0, static_cast<double>(choice.items()) / chip.sm_count);
    const double cost = bytes / (busy * busy);
    if (least != 0 && cost >= least) return;
    least = cost;
    best = choice;
  };
  const PointwiseTileShape &narrow = kPointwiseNarrow, &wide = kPointwiseWide, &small = kPointwiseSmall;
  consider(PointwiseTile::kNarrow, narrow.rows, narrow.columns);
  consider(PointwiseTile::kWide, wide.rows, wide.columns);
  for (const int tile_rows : {small.rows, small.rows / 2}) {
    for (const int tile_columns : {small.columns, small.columns / 2}) {
      consider(PointwiseTile::kSmall, tile_rows, tile_columns);
    }
  }
  if (least == 0) return std::nullopt;
  return best;
}

// What a lane moves at a time; `stride` is the way to its neighbour's.
std::string access_text(int vector, int64_t stride, int element_bytes = kElementBytes) {
  if (vector > 1) return std::to_string(vector * element_bytes) + " bytes";
  std::string text = "single elements";
  if (stride > 1) text += stride < kSectorElements ? ", " + std::to_string(stride) + " apart" : ", far apart";
  return text;
}

std::string load_text(const PointwiseOperand& operand, bool across) {
  return access_text(operand.vector, (across ? operand.row : operand.reduction).stride_w);
}

std::string store_text(const PointwisePlan& plan) {
  const PointwiseParams& params = plan.params;
  if (plan.splits > 1)
    return "partial sums in stores of " + access_text(params.store_vector, 1, sizeof(float));
  if (params.cell_pairs) return "results in stores of 4 bytes, with a zero each";
  return "results in stores of " + access_text(params.store_vector, params.out_column.stride_w);
}

}  // namespace

std::optional<PointwisePlan> plan_pointwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  if (params.dtype != DType::kFloat16 && params.dtype != DType::kBFloat16) return std::nullopt;
  if (problem.r != 1 || problem.s != 1 || problem.groups != 1) return std::nullopt;
  // Output pixels that see only padding are the generic path's, and so is an empty batch or image.
  if (problem.pad_top != 0 || problem.pad_left != 0 ||
      int64_t{problem.p - 1} * problem.stride_h >= problem.h ||
      int64_t{problem.q - 1} * problem.stride_w >= problem.w) {
    return std::nullopt;
  }
  for (const int extent : {problem.n, problem.c, problem.k, problem.p, problem.q}) {
    if (extent < 1) return std::nullopt;
  }
  const int64_t pixels = int64_t{problem.n} * problem.h * problem.w;
  if (pixels > kMostIndex || problem.c > kMostIndex || problem.k > kMostIndex) return std::nullopt;

  PointwisePlan plan = bind(pass, params);
  PointwiseParams& result = plan.params;
  const std::optional<TileChoice> chosen = choose_tile(plan, pass == Conv2dPass::kWgrad, chip);
  if (!chosen.has_value()) return std::nullopt;
  const TileChoice& choice = *chosen;
  const PointwiseTileShape& shape = pointwise_shape(choice.tile);
  plan.tile = choice.tile;
  plan.threads = shape.threads();
  plan.shared_bytes = static_cast<size_t>(shared_bytes(choice.tile, plan));
  result.tile_rows = choice.rows;
  result.tile_columns = choice.columns;
  result.steps = static_cast<int>(ceil_div(result.reduction, shape.depth));
  result.split_steps = static_cast<int>(ceil_div(result.steps, choice.splits));
  plan.splits = static_cast<int>(ceil_div(result.steps, result.split_steps));
  const int64_t tiles = choice.row_tiles * choice.column_tiles;
  const int64_t items = tiles * plan.splits;
  if (items > kMostIndex) return std::nullopt;
  result.items = static_cast<int>(items);
  result.tiles = FastDiv(static_cast<int>(tiles));
  result.row_tiles = FastDiv(static_cast<int>(choice.row_tiles));
  result.column_tiles = FastDiv(static_cast<int>(choice.column_tiles));
  // Blocks at work at a time share the larger operand's tiles: each of those comes from memory once.
  result.row_tiles_first = result.out_row.extent < result.out_column.extent;
  plan.grid = std::min(items, round_of(choice.tile, plan, chip));
  if (pass == Conv2dPass::kWgrad) {
    const int64_t rows = result.out_row.extent;
    result.split_elements = rows * result.out_column.extent + (result.bias_grad != nullptr ? rows : 0);
    if (plan.splits > 1) {
      plan.workspace_bytes = static_cast<size_t>(plan.splits * result.split_elements) * sizeof(float);
      result.store_vector = result.split_elements % 4 == 0 && result.out_column.extent % 4 == 0 ? 4 : 1;
    }
  }
  plan.text =
      std::to_string(choice.rows) + "x" + std::to_string(choice.columns) + "x" + std::to_string(shape.depth);
  const bool pixels_first = pass == Conv2dPass::kWgrad || result.pixels_in_rows;
  const std::string a = load_text(result.a, plan.lie == PointwiseLie::kBothAcross);
  const std::string b = load_text(result.b, plan.lie != PointwiseLie::kBothAlong);
  plan.reason = std::string("1x1: a product on tensor cores; ") + (pass == Conv2dPass::kFprop ? "x" : "dy") +
                " in loads of " + (pixels_first ? a : b) + ", " + (pass == Conv2dPass::kWgrad ? "x" : "w") +
                " of " + (pixels_first ? b : a) + ", " + store_text(plan);
  if (choice.tile == PointwiseTile::kSmall) plan.reason += "; few results: warps share the reduction";
  return plan;
}

void launch_pointwise(Conv2dPass pass, const Conv2dParams& params, const PointwisePlan& plan,
                      cudaStream_t stream) {
  PointwiseParams result = plan.params;
  if (plan.splits > 1) result.partials = static_cast<float*>(params.workspace);
  const auto with_type = [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (plan.lie) {
      case PointwiseLie::kBothAlong:
        return pointwise::launch_mma<T, PointwiseLie::kBothAlong>(pass, result, plan, stream);
      case PointwiseLie::kAlongAcross:
        return pointwise::launch_mma<T, PointwiseLie::kAlongAcross>(pass, result, plan, stream);
      case PointwiseLie::kBothAcross:
        return pointwise::launch_mma<T, PointwiseLie::kBothAcross>(pass, result, plan, stream);
    }
  };
  if (params.dtype == DType::kFloat16) {
    with_type(TypeTag<__half>{});
  } else {
    with_type(TypeTag<__nv_bfloat16>{});
  }
  if (plan.splits == 1) return;
  SplitSumParams sum;
  sum.partials = result.partials;
  sum.output = params.output;
  sum.dtype = params.dtype;
  sum.splits = plan.splits;
  sum.n = params.problem.k;
  sum.c = params.problem.c;
  if (params.bias_grad != nullptr) {
    sum.tail_output = params.bias_grad;
    sum.tail = params.problem.k;
  }
  launch_split_sum(sum, stream);
}

}  // namespace fastcnn
