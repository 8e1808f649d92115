// What the sweep of depthwise wgrad covers; its chunks, stages and splits.
#include <algorithm>
#include <numeric>
#include <optional>

#include "common/ceil_div.h"
#include "common/dense_planes.h"
#include "conv2d/depthwise.h"

namespace fastcnn {
namespace {

constexpr int kChunkBytes = 64;      // NHWC: of a pixel's channels
constexpr int64_t kRunBytes = 2048;  // NCHW: of an image, at least, where one plane is less
constexpr int kFewestWorkers = 8;    // NCHW: of a channel
constexpr int kRunEdgeBytes = 32;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;
constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int kMostExtent = 1 << 20;

int bits_of(int64_t count) {
  int bits = 0;
  while ((int64_t{1} << bits) < count) ++bits;
  return bits;
}

// Drops the rows of x that no tap reads, as those between the taps and pixels of an even stride and dilation.
// `view` and the extents then describe every g-th row. Columns likewise. False where nothing is left.
bool drop_unread(int taps, int bytes, int& extent, int& pad, int& stride, int& dilation, void*& data,
                 int64_t& step) {
  if (taps == 1) dilation = stride;
  const int g = std::gcd(stride, dilation);
  const int first = (g - pad % g) % g;  // of the rows that are read, in the image
  extent = static_cast<int>(ceil_div(extent - first, g));
  pad = (pad + first) / g;
  stride /= g;
  dilation /= g;
  if (data != nullptr) data = static_cast<char*>(data) + first * step * bytes;
  step *= g;
  return extent > 0;
}

// Rows of x that the taps of rows p .. p + rows - 1 of dy span, in the image.
int64_t x_span(int64_t p, int64_t rows, int stride, int taps, int dilation, int pad, int extent) {
  const int64_t top = p * stride - pad;
  const int64_t bottom = top + (rows - 1) * stride + int64_t{taps - 1} * dilation + 1;
  return std::max<int64_t>(0, std::min<int64_t>(bottom, extent) - std::max<int64_t>(top, 0));
}

// The most of them, wherever the rows begin.
int64_t x_reach(int64_t rows, int stride, int taps, int dilation, int extent) {
  return std::min<int64_t>(extent, (rows - 1) * stride + int64_t{taps - 1} * dilation + 1);
}

// How the problem lies on a block. Row and column counts of the stage are left open.
struct Shape {
  DepthwiseSweepParams params;
  bool channels_last = true;
  bool saved = false;
  int bytes = 4, vector = 1, item_rows = 1;
  bool bias_grad = false;
  int64_t splits = 1;
  double cost = 0;  // in times that x and dy take to be read, about
  int per16() const { return 16 / bytes; }
  int lanes() const { return 1 << params.lane_bits; }
  int workers() const { return 1 << params.worker_bits; }
  int64_t blocks() const {
    return int64_t{params.chunks.divisor()} * params.column_tiles.divisor() * params.window_groups.divisor();
  }
  // Of a split.
  int64_t partial_bytes() const {
    const int64_t sums = int64_t{params.problem.r} * params.problem.s + (bias_grad ? 1 : 0);
    return params.column_tiles.divisor() * params.problem.c * sums * static_cast<int64_t>(sizeof(float));
  }
};

// Rows of the ring: those of a stage and those that the next one adds.
int64_t ring_rows(const Conv2dProblem& problem, int images, int rows) {
  const auto span = [&](int64_t p) {
    return x_span(p, std::min<int64_t>(rows, problem.p - p), problem.stride_h, problem.r, problem.dilation_h,
                  problem.pad_top, problem.h);
  };
  const int64_t last = ceil_div(problem.p, rows) - 1;
  const int64_t to_next_image = images * (span(last * rows) + span(0));
  if (last == 0) return to_next_image;
  const int64_t reach = x_reach(rows, problem.stride_h, problem.r, problem.dilation_h, problem.h);
  return std::max(to_next_image, reach + int64_t{rows} * problem.stride_h);
}

// Places a stage of so many images, rows and columns in the arena. Its bytes there.
int64_t place_stage(Shape& shape, int images, int rows, int columns) {
  DepthwiseSweepParams& params = shape.params;
  const Conv2dProblem& problem = params.problem;
  params.stage_images = images;
  params.stage_rows = rows;
  params.tile_columns = columns;
  int64_t x_elements, dy_image;
  if (shape.channels_last) {
    const int chunk = params.chunk_channels;
    params.x_column = params.dy_column = chunk;
    params.x_row =
        static_cast<int>(x_reach(columns, problem.stride_w, problem.s, problem.dilation_w, problem.w)) *
        chunk;
    params.x_ring = static_cast<int>(std::min(ring_rows(problem, images, rows), kMostIndex));
    params.dy_row = columns * chunk;
    x_elements = int64_t{params.x_ring} * params.x_row;
    dy_image = int64_t{rows} * params.dy_row;
  } else {
    // A run starts anywhere within 16 bytes.
    const auto run = [&](int64_t plane, int64_t part) {
      return ceil_div((params.chunk_channels - 1) * plane + part, shape.per16()) * shape.per16() +
             shape.per16();
    };
    const int64_t span = x_reach(rows, problem.stride_h, problem.r, problem.dilation_h, problem.h);
    const int64_t x_image = run(int64_t{problem.h} * problem.w, span * problem.w);
    params.x_row = problem.w;
    params.dy_row = problem.q;
    params.x_image = static_cast<int>(std::min(x_image, kMostIndex));
    x_elements = 2 * images * x_image;
    dy_image = run(int64_t{problem.p} * problem.q, int64_t{rows} * problem.q);
  }
  const int64_t bytes = (x_elements + (shape.saved ? 4 : 2) * images * dy_image) * shape.bytes;
  if (bytes > kSweepArenaBytes) return bytes;
  params.dy_image = static_cast<int>(dy_image);
  params.dy_start = static_cast<int>(x_elements);
  params.dy_buffer = static_cast<int>(images * dy_image);
  params.saved_start = 2 * params.dy_buffer;
  return bytes;
}

bool fits(Shape& shape, int images, int rows, int columns) {
  return place_stage(shape, images, rows, columns) <= kSweepArenaBytes;
}

// Items of a stage: sets of rows of one column.
int64_t stage_items(const Shape& shape, int images, int rows, int columns) {
  const int step = shape.params.row_step;
  return ceil_div(rows, int64_t{shape.item_rows} * step) * step * images * columns;
}

// The fewest rows that a stage may well have.
int least_rows(const Shape& shape) {
  return static_cast<int>(
      std::min<int64_t>(shape.params.problem.p, int64_t{shape.item_rows} * shape.params.row_step));
}

// NHWC: memory moves in 64 bytes; 32 that two blocks fetch at about the same time may come together.
double chunk_waste(int bytes) {
  return bytes >= 64 ? 1 : (bytes >= 32 ? 1.2 : 2);
}

// NHWC: the chunk of channels and the column tile that bring least, among those that fit. Columns, or 0.
int choose_chunk(Shape& shape) {
  DepthwiseSweepParams& params = shape.params;
  const Conv2dProblem& problem = params.problem;
  int best_columns = 0, best_chunk = 0;
  double best_cost = 0;
  for (int bytes = kChunkBytes; bytes >= 16; bytes /= 2) {
    params.chunk_channels = std::max(shape.per16(), std::min(bytes / shape.bytes, 1 << bits_of(problem.c)));
    if (params.chunk_channels == best_chunk) continue;
    for (int tiles = 1; tiles <= problem.q; tiles += std::max(1, tiles / 4)) {
      const int columns = static_cast<int>(ceil_div(problem.q, tiles));
      if (!fits(shape, 1, least_rows(shape), columns)) continue;
      int64_t x_columns = 0;
      for (int64_t q = 0; q < problem.q; q += columns) {
        x_columns += x_span(q, std::min<int64_t>(columns, problem.q - q), problem.stride_w, problem.s,
                            problem.dilation_w, problem.pad_left, problem.w);
      }
      const double dy = static_cast<double>(problem.p) * problem.q, x = static_cast<double>(problem.h);
      const double cost = chunk_waste(bytes) * (dy + x * x_columns) / (dy + x * problem.w);
      if (best_columns == 0 || cost < best_cost) {
        best_cost = cost;
        best_columns = columns;
        best_chunk = params.chunk_channels;
      }
      break;
    }
  }
  params.chunk_channels = best_chunk;
  return best_columns;
}

// NCHW: the channels of a block, so that small planes come in long runs.
void choose_planes(Shape& shape, int threads) {
  DepthwiseSweepParams& params = shape.params;
  const Conv2dProblem& problem = params.problem;
  const int64_t plane =
      std::min(int64_t{problem.h} * problem.w, int64_t{problem.p} * problem.q) * shape.bytes;
  int planes = 1;
  while (planes * plane < kRunBytes && planes < problem.c && 2 * planes * kFewestWorkers <= threads) {
    planes *= 2;
  }
  params.chunk_channels = planes;
}

// Larger stages, in rows, then in images, until every worker has a few items and few of them idle; but so
// many stages that they can be spread over the chip. False where not even the smallest stage fits.
bool choose_stage(Shape& shape, int columns, int64_t slots) {
  const int64_t blocks = shape.blocks();
  const Conv2dProblem& problem = shape.params.problem;
  const int unit = least_rows(shape);
  const int64_t all_units = ceil_div(problem.p, unit);
  int best_images = 0, best_rows = 0;
  double best_use = 0;
  for (int64_t size = 1; size <= 64; ++size) {
    int rows = static_cast<int>(std::min<int64_t>(problem.p, size * unit)), images = 1;
    if (size > all_units) {
      images = static_cast<int>(size - all_units + 1);
      if (images > problem.n) break;
    }
    const int64_t stages = ceil_div(problem.n, images) * ceil_div(problem.p, rows);
    if (!fits(shape, images, rows, columns)) break;
    if (best_rows != 0 && shape.channels_last && stages * blocks < 2 * slots) break;
    const int64_t items = stage_items(shape, images, rows, columns);
    const int64_t rounds = ceil_div(items, shape.workers());
    double use = static_cast<double>(items) / static_cast<double>(rounds * shape.workers());
    // What a stage costs beside its items.
    use *= static_cast<double>(rounds) / (static_cast<double>(rounds) + 0.33);
    // NCHW: the rows at which stages of a plane meet are brought twice.
    if (!shape.channels_last) {
      const double brought = static_cast<double>(
          (ceil_div(problem.p, rows) - 1) *
          std::max<int64_t>(0, int64_t{problem.r - 1} * problem.dilation_h + 1 - problem.stride_h));
      use /= 1 + 2 * brought / problem.h;
      if (stages * blocks < 2 * slots && rows == problem.p && best_rows == problem.p) break;
    }
    if (use > best_use + 0.02) {
      best_use = use;
      best_images = images;
      best_rows = rows;
    }
  }
  return best_rows != 0 && fits(shape, best_images, best_rows, columns);
}

// Splits that keep the chip busy to the end and that bring little: partial sums, and rows of x where a split
// begins within an image.
void choose_splits(Shape& shape, const Chip& chip, int resident) {
  const int64_t blocks = shape.blocks(), partial_bytes = shape.partial_bytes();
  const DepthwiseSweepParams& params = shape.params;
  const Conv2dProblem& problem = params.problem;
  const double read = static_cast<double>(params.x_elements + params.dy_elements) * shape.bytes;
  const double halo = shape.channels_last
                          ? static_cast<double>(params.x_elements) / (double{1} * problem.n * problem.h) *
                                (problem.r - 1) * problem.dilation_h * shape.bytes
                          : 0.0;
  const int64_t strips = params.strips.divisor();
  const int64_t most =
      std::clamp<int64_t>(kMostWorkspace / partial_bytes, 1, std::min<int64_t>(params.stages, 8192));
  // NCHW: a run of planes ends within 32 bytes that another one has too, at both ends.
  const double edges = shape.channels_last ? 0.0
                                           : 2.0 * kRunEdgeBytes * static_cast<double>(params.stages) *
                                                 params.stage_images * params.chunks.divisor();
  // Alone on an SM, a block waits for its own barriers.
  const double slower = (resident == 1 ? 1.05 : 1.0) *
                        (shape.channels_last ? chunk_waste(params.chunk_channels * shape.bytes) : 1);
  shape.cost = 0;
  // One after another the numbers of splits that differ in the stages of a split: few of them.
  for (int64_t wanted = 1; wanted <= most;) {
    const int64_t stages = ceil_div(params.stages, wanted), splits = ceil_div(params.stages, stages);
    wanted = stages == 1 ? most + 1 : ceil_div(params.stages, stages - 1);
    // A block's first stage comes while nothing is summed.
    const double time = slower * chip_time(blocks * splits, chip.sm_count, resident) *
                        (static_cast<double>(stages) + 0.5) * chip.sm_count /
                        static_cast<double>(params.stages * blocks);
    const double sums = splits == 1 ? 0 : 2.0 * static_cast<double>(splits * partial_bytes);
    const double again = stages % strips == 0 ? 0 : static_cast<double>(splits) * halo;
    const double cost = time + (2 * sums + 1.5 * (again + edges)) / read;
    if (splits == 1 || cost < shape.cost) {
      shape.splits = splits;
      shape.cost = cost;
    }
  }
}

// Places a chunk of channels on a block of so many threads: its stages and splits. False where no stage fits.
bool lay_out(Shape& shape, int columns, int threads, int by_registers, const Chip& chip) {
  DepthwiseSweepParams& params = shape.params;
  const Conv2dProblem& problem = params.problem;
  params.lane_bits = bits_of(params.chunk_channels / shape.vector);
  params.worker_bits = bits_of(threads) - params.lane_bits;
  params.chunks = FastDiv(static_cast<int>(ceil_div(problem.c, params.chunk_channels)));
  params.column_tiles = FastDiv(static_cast<int>(ceil_div(problem.q, columns)));
  const int resident = std::clamp(chip.shared_bytes_per_block / (kSweepArenaBytes + 1024), 1, by_registers);
  if (!choose_stage(shape, columns, int64_t{resident} * chip.sm_count)) return false;
  const int64_t strips = ceil_div(problem.p, params.stage_rows);
  const int64_t stages = ceil_div(problem.n, params.stage_images) * strips;
  if (stages > kMostIndex) return false;
  params.stages = static_cast<int>(stages);
  params.strips = FastDiv(static_cast<int>(strips));
  params.item_columns = FastDiv(columns);
  params.item_phases = FastDiv(params.row_step);
  params.item_strips = FastDiv(static_cast<int>(stage_items(shape, 1, params.stage_rows, 1)));
  choose_splits(shape, chip, resident);
  params.split_stages = static_cast<int>(ceil_div(stages, shape.splits));
  return true;
}

// Covered: one filter a channel; strides (without the factor they share with the dilation) of 1 and 2; no
// rows or columns of x between windows; tensors whose channels (NHWC) or planes (NCHW) come in 16 bytes.
bool covered(const Conv2dParams& params, bool channels_last) {
  const Conv2dProblem& problem = params.problem;
  if (params.dtype == DType::kFloat64 || problem.filters_per_group() != 1) return false;
  for (const int extent : {problem.n, problem.h, problem.w, problem.p, problem.q}) {
    if (extent < 1) return false;
  }
  for (const int extent : {problem.h, problem.w, problem.r, problem.s, problem.stride_h, problem.stride_w,
                           problem.pad_top, problem.pad_left, problem.dilation_h, problem.dilation_w}) {
    if (extent > kMostExtent) return false;
  }
  const int bytes = dtype_size(params.dtype), vector = 16 / bytes;
  if (reinterpret_cast<uintptr_t>(params.grad_activation.saved) % 16 != 0) return false;
  if (!channels_last) {
    return dense_planes(params.input, problem.n, problem.c, problem.h, problem.w) &&
           dense_planes(params.grad, problem.n, problem.k, problem.p, problem.q);
  }
  return problem.c % vector == 0 &&
         channels_align(params.input, problem.n, problem.h, problem.w, vector, bytes) &&
         channels_align(params.grad, problem.n, problem.p, problem.q, vector, bytes);
}

std::optional<DepthwisePlan> plan_layout(const Conv2dParams& conv, const Chip& chip, bool channels_last) {
  if (!covered(conv, channels_last)) return std::nullopt;
  DepthwisePlan plan;
  plan.sweep.chosen = true;
  plan.sweep.channels_last = channels_last;
  Shape shape;
  shape.channels_last = channels_last;
  shape.saved = conv.grad_activation.saved != nullptr;
  shape.bias_grad = conv.bias_grad != nullptr;
  shape.bytes = dtype_size(conv.dtype);
  DepthwiseSweepParams& params = shape.params;
  params.problem = conv.problem;
  params.x = conv.input;
  params.dy = conv.grad;
  params.activation = conv.grad_activation;
  params.output = conv.output;
  params.bias_grad = conv.bias_grad;
  Conv2dProblem& problem = params.problem;
  params.x_elements = int64_t{problem.n} * problem.c * problem.h * problem.w;
  params.dy_elements = int64_t{problem.n} * problem.c * problem.p * problem.q;
  if (channels_last && !(drop_unread(problem.r, shape.bytes, problem.h, problem.pad_top, problem.stride_h,
                                     problem.dilation_h, params.x.data, params.x.stride_h) &&
                         drop_unread(problem.s, shape.bytes, problem.w, problem.pad_left, problem.stride_w,
                                     problem.dilation_w, params.x.data, params.x.stride_w))) {
    return std::nullopt;
  }
  if (problem.stride_h > (problem.r - 1) * problem.dilation_h + 1 ||
      problem.stride_w > (problem.s - 1) * problem.dilation_w + 1) {
    return std::nullopt;
  }

  // Output rows p and p + row_step lie `stride` tap steps apart.
  const int shared = std::gcd(problem.stride_h, problem.dilation_h);
  const int stride = problem.stride_h / shared;
  if (stride > 2) return std::nullopt;
  plan.sweep.stride = stride;
  params.row_step = problem.dilation_h / shared;
  params.tap_step = problem.dilation_h;
  shape.item_rows = sweep_rows(channels_last, stride);

  const bool whole = problem.r == problem.s && (problem.r == 3 || problem.r == 5 || problem.r == 7);
  plan.sweep.window = whole ? problem.r : 0;
  const int window = whole ? problem.r : kSweepAnyWindow;
  shape.vector = sweep_vector(channels_last, window, whole);
  const int64_t window_columns = ceil_div(problem.s, window);
  const int64_t windows = ceil_div(problem.r, window) * window_columns;
  const int64_t window_groups = ceil_div(windows, kSweepMostWindows);
  params.windows = static_cast<int>(windows);
  params.block_windows = static_cast<int>(ceil_div(windows, window_groups));
  params.window_columns = FastDiv(static_cast<int>(window_columns));
  params.window_groups = FastDiv(static_cast<int>(window_groups));
  const int threads = params.block_windows == 1 ? kSweepThreads : (params.block_windows == 2 ? 64 : 32);

  int columns = problem.q;
  if (channels_last) {
    columns = choose_chunk(shape);
    if (columns == 0) return std::nullopt;
  } else {
    choose_planes(shape, threads);
  }
  const int resident = whole ? sweep_blocks(channels_last, window) : (params.block_windows <= 4 ? 3 : 1);
  std::optional<Shape> best;
  const auto consider = [&](int chunk_channels, int block_threads) {
    Shape laid = shape;
    laid.params.chunk_channels = chunk_channels;
    const int by_registers = std::max(1, resident * threads / block_threads);
    if (!lay_out(laid, columns, block_threads, by_registers, chip)) return;
    if (!best || laid.cost < best->cost) best = laid;
  };
  // For fewer partial sums: two blocks' threads in one, and fewer channels or planes a block.
  for (int channels = params.chunk_channels; channels >= (channels_last ? shape.per16() : 1); channels /= 2) {
    consider(channels, threads);
    if (whole && resident == 2) consider(channels, 2 * threads);
  }
  if (!best) return std::nullopt;
  shape = *best;
  plan.splits = static_cast<int>(shape.splits * params.column_tiles.divisor());
  if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(shape.splits * shape.partial_bytes());
  plan.grid = shape.blocks() * shape.splits;
  if (plan.grid > kMostIndex) return std::nullopt;

  plan.sweep.params = params;
  plan.vector = shape.vector;
  plan.tile.channels_fast = channels_last;
  plan.tile.channel_threads = shape.lanes();
  plan.tile.pixel_threads = shape.workers() * params.block_windows;
  plan.tile.fast_bits = channels_last ? params.lane_bits : params.worker_bits;
  plan.images_per_launch = problem.n;
  plan.launches = 1;
  plan.shared_bytes = kSweepArenaBytes;
  plan.path = std::string("depthwise_wgrad_sweep_") + (channels_last ? "nhwc" : "nchw") +
              (whole ? "_" + std::to_string(window) + "x" + std::to_string(window) : "");
  plan.reason = std::string("one sweep over x and dy by 16-byte loads, ") +
                (whole ? "all taps in a thread's registers; " : "the taps spread over the block's warps; ") +
                std::to_string(params.stage_rows) + " rows of " + std::to_string(columns) + " columns of " +
                std::to_string(params.stage_images) + " images in shared memory at a time";
  return plan;
}

}  // namespace

double chip_time(int64_t blocks, int sm_count, int resident) {
  const int64_t per_sm = ceil_div(blocks, sm_count), rest = per_sm % resident;
  const double alone = rest == 0 ? 1 : (rest == 1 ? 1.6 : 1.1);
  return static_cast<double>(per_sm - rest) + static_cast<double>(rest) * alone;
}

std::optional<DepthwisePlan> plan_depthwise_sweep(const Conv2dParams& params, const Chip& chip) {
  if (chip.shared_bytes_per_block < kSweepArenaBytes) return std::nullopt;
  if (auto plan = plan_layout(params, chip, true)) return plan;
  return plan_layout(params, chip, false);
}

}  // namespace fastcnn
