// What the pooled kernels cover, and their tiles: windows and filters of a block, and how many of its threads
// share the channels.
#include <algorithm>
#include <cmath>
#include <optional>

#include "common/ceil_div.h"
#include "conv2d/pointwise.h"
#include "conv2d/pooled.h"
#include "conv2d/thin.h"

namespace fastcnn {
namespace {

constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int kMostExtent = 1 << 20;  // of what adds up to a column of the box
constexpr int kLeastMmaChannels = 16;
constexpr int kReservedBytes = 1024;  // of each block's shared memory, by the hardware
constexpr int kFmaBlocks = 3;         // of the most threads, by registers, in an SM
constexpr int kMmaBlocks = 2;         // likewise
constexpr size_t kFmaBytes = kPooledArena * sizeof(float);
constexpr size_t kMmaBytes = kPooledMmaArenaBytes + 2 * kPooledMmaTaps * sizeof(int);

// Rough, and only compared with each other. Instructions of one thread:
constexpr double kPerProduct = 1.15;    // a product, with its share of the reads that feed it
constexpr double kPerAnyProduct = 1.5;  // where taps are not unrolled
constexpr double kPerElement = 8;       // brought to shared memory
constexpr double kPerTile = 450;        // epilogue and stores
constexpr double kPerSlice = 70;        // sums of another slice
// Clocks:
constexpr double kPerStep = 128;     // of a quarter of an SM: a warp's 16 mma
constexpr double kPerLoad = 75;      // an element waited for, with those in flight beside it
constexpr double kPerChunk = 1000;   // barriers, and the first loads
constexpr double kWarpsToFill = 6;   // of an SM: fewer leave its units idle
constexpr double kPerLaunch = 5000;  // 3 us

// Clocks that an SM needs for so many tiles of so many warps, of which blocks_at_once run at once.
double clocks(double compute, double elements, int64_t chunks, int64_t tiles, int warps,
              int64_t blocks_at_once) {
  const double blocks = static_cast<double>(std::min(tiles, blocks_at_once));
  const double running = blocks * warps;
  const double rounds = std::ceil(static_cast<double>(tiles) / blocks);
  // Each block waits for its loads; beyond the first round, other blocks compute meanwhile.
  const double waiting = elements * kPerLoad + static_cast<double>(chunks) * kPerChunk;
  const double issued = compute + elements * kPerElement + kPerTile;
  return waiting * std::max(1.0, rounds / blocks) + rounds * issued * std::max(running, kWarpsToFill) / 4;
}

// What an SM can have of a chip in a clock, by the boards' data sheets: bytes of device memory, and half of
// the products that its tensor cores sum in fp32.
struct Rates {
  double bytes, products;
};
Rates rates_of_sm(const Chip& chip) {
  if (chip.compute_capability >= 90) return {14, 512};
  if (chip.compute_capability == 89) return {3, 128};
  if (chip.compute_capability == 86) return {6.5, 128};
  return {10, 512};
}

int covering_power(int64_t extent, int most) {
  int power = 1;
  while (power < most && power < extent) power *= 2;
  return power;
}

// The rows or columns of an image that so many windows, side by side, see.
int64_t seen_by(int windows, int stride, int kernel, int dilation) {
  return int64_t{kPooledWindow * windows - 1} * stride + int64_t{kernel - 1} * dilation + 1;
}

// How a block's threads spread over windows and filters, and how many such groups share the channels.
struct Spread {
  int slots, filter_threads, slices;
  int threads() const { return slots * filter_threads * slices; }
};

// What the searches for a tile share: what a tile of windows sees, and the best one so far.
class TileSearch {
 public:
  double cost() const { return cost_; }

  // Blocks that are on the chip at once.
  int64_t resident(int threads) const { return int64_t{chip_.sm_count} * blocks_of_sm(threads); }

 protected:
  TileSearch(const Conv2dProblem& problem, int rows, int columns, const Chip& chip, size_t shared_bytes,
             int blocks)
      : problem_(problem),
        chip_(chip),
        rows_(rows),
        columns_(columns),
        taps_(problem.r * problem.s),
        box_rows_(seen_by(1, problem.stride_h, problem.r, problem.dilation_h)),
        fitting_(std::max(1, (chip.shared_bytes_per_block + kReservedBytes) /
                                 (static_cast<int>(shared_bytes) + kReservedBytes))),
        most_blocks_(blocks) {}

  // By shared memory and by registers.
  int blocks_of_sm(int threads) const {
    return std::min(fitting_, std::max(1, most_blocks_ * kPooledThreads / threads));
  }

  int64_t box_columns(int tile_columns) const {
    return seen_by(tile_columns, problem_.stride_w, problem_.s, problem_.dilation_w);
  }

  // Calls with the two widths of tile that cut the columns into the fewest parts, and into one more.
  template <class Consider>
  void each_width(int slots, const Consider& consider) const {
    const int least_cuts = static_cast<int>(ceil_div(columns_, slots));
    for (int cuts = least_cuts; cuts < least_cuts + 2 && cuts <= columns_; ++cuts) {
      consider(static_cast<int>(ceil_div(columns_, cuts)));
    }
  }

  // False where an earlier tile costs no more.
  bool keep(double cost, int tile_rows, int tile_columns, int chunk) {
    if (found_ && cost >= cost_) return false;
    found_ = true;
    cost_ = cost;
    tile_rows_ = tile_rows;
    tile_columns_ = tile_columns;
    chunk_ = chunk;
    return true;
  }

  void finish_tile(PooledParams& params) const {
    params.tile_columns = tile_columns_;
    params.tile_rows = tile_rows_;
    params.row_tiles = static_cast<int>(ceil_div(rows_, tile_rows_));
    params.box_rows = static_cast<int>(box_rows_);
    params.box_columns = FastDiv(static_cast<int>(box_columns(tile_columns_)));
    params.chunk = chunk_;
  }

  const Conv2dProblem& problem_;
  const Chip& chip_;
  int rows_, columns_, taps_;
  int64_t box_rows_;
  bool found_ = false;
  int tile_rows_ = 0, tile_columns_ = 0, chunk_ = 0;

 private:
  int fitting_;      // blocks of an SM, by shared memory
  int most_blocks_;  // of the most threads, by registers
  double cost_ = 0;
};

// The tile on FMA units: windows, filters and slices of channels.
class Search : public TileSearch {
 public:
  Search(const Conv2dProblem& problem, int rows, int columns, bool three_by_three, const Chip& chip)
      : TileSearch(problem, rows, columns, chip, kFmaBytes, kFmaBlocks), three_by_three_(three_by_three) {}

  // `vector` channels come as one access. False where nothing fits shared memory.
  bool run(int vector) {
    vector_ = vector;
    const int widest = covering_power(ceil_div(problem_.k, kPooledFilters), 8);
    const int usual = std::min(widest, 4);
    const int64_t windows = int64_t{rows_} * columns_;
    const int64_t large =
        ceil_div(windows, kPooledThreads / usual) * ceil_div(problem_.k, usual * kPooledFilters);
    if (large >= 2 * resident(kPooledThreads)) {
      for (int threads = kPooledThreads; threads > kPooledThreads / 2; threads -= 32) {
        consider({threads / usual, usual, 1});
      }
      if (found_) return true;
    }
    // 32 are allowed though some be idle: a block is a warp at least.
    const int most_slots = covering_power(std::max<int64_t>(windows, 32), kPooledThreads);
    for (int filter_threads = 1; filter_threads <= widest; filter_threads *= 2) {
      for (int slots = 1; slots <= most_slots; slots *= 2) {
        for (int slices = 1; slices <= covering_power(problem_.c, 64); slices *= 2) {
          const Spread spread{slots, filter_threads, slices};
          if (spread.threads() > kPooledThreads) break;
          if (spread.threads() >= 32) consider(spread);
        }
      }
    }
    return found_;
  }

  // Fills what was found, and gives the threads of a block.
  int finish(PooledParams& params) const {
    finish_tile(params);
    params.slices = spread_.slices;
    params.slice_threads = spread_.slots * spread_.filter_threads;
    params.filter_threads = spread_.filter_threads;
    while (1 << params.filter_bits < spread_.filter_threads) ++params.filter_bits;
    params.block_filters = spread_.filter_threads * kPooledFilters;
    params.weight_pitch = params.block_filters + kPooledWeightPad;
    const int64_t columns = box_columns(tile_columns_);
    params.pitch = static_cast<int>(pitch(columns));
    params.plane = static_cast<int>(plane(tile_rows_, columns));
    return spread_.threads();
  }

 private:
  // Even where pixels are read in pairs.
  int64_t pitch(int64_t columns) const { return three_by_three_ ? columns + columns % 2 : columns; }
  // 2 more than a multiple of 8: 16-byte runs of neighbouring pixels' channels then spread over the banks.
  int64_t plane(int tile_rows, int64_t columns) const {
    return (tile_rows * box_rows_ * pitch(columns) + 5) / 8 * 8 + 2;
  }

  void consider(const Spread& spread) {
    each_width(spread.slots, [&](int tile_columns) { consider(spread, tile_columns); });
  }

  void consider(const Spread& spread, int tile_columns) {
    const int tile_rows = std::min(spread.slots / tile_columns, rows_);
    const int64_t columns = box_columns(tile_columns);
    if (box_rows_ > kPooledArena || columns > kPooledArena) return;
    const int filters = spread.filter_threads * kPooledFilters;
    const int64_t channel_floats = plane(tile_rows, columns) + int64_t{taps_} * (filters + kPooledWeightPad);
    // Even, so that the weights behind the box start on 16 bytes.
    const int multiple = std::max({2, vector_, spread.slices});
    int chunk = static_cast<int>(kPooledArena / channel_floats) / multiple * multiple;
    if (chunk == 0) return;
    chunk = std::min(chunk, (problem_.c + multiple - 1) / multiple * multiple);

    const double products = 4.0 * kPooledFilters * taps_ * (three_by_three_ ? kPerProduct : kPerAnyProduct) *
                            ((problem_.c + spread.slices - 1) / spread.slices);
    const double box = static_cast<double>(tile_rows * box_rows_ * columns) / (vector_ > 1 ? 2 : 1);
    const double elements = problem_.c * (box + static_cast<double>(taps_) * filters);
    const int threads = spread.threads();
    const int64_t blocks =
        ceil_div(rows_, tile_rows) * ceil_div(columns_, tile_columns) * ceil_div(problem_.k, filters);
    const double cost =
        clocks(products + (spread.slices - 1) * kPerSlice, elements / threads, ceil_div(problem_.c, chunk),
               ceil_div(blocks, chip_.sm_count), threads / 32, blocks_of_sm(threads));
    if (keep(cost, tile_rows, tile_columns, chunk)) spread_ = spread;
  }

  bool three_by_three_;
  int vector_ = 1;
  Spread spread_{};
};

// The tile on tensor cores: warps, windows and channels at a time.
class MmaSearch : public TileSearch {
 public:
  MmaSearch(const Conv2dProblem& problem, int rows, int columns, const Chip& chip)
      : TileSearch(problem, rows, columns, chip, kMmaBytes, kMmaBlocks) {}

  // False where nothing fits shared memory.
  bool run() {
    const int most_filter_warps = covering_power(ceil_div(problem_.k, kPooledMmaFilters), 2);
    for (int filter_warps = 1; filter_warps <= most_filter_warps; filter_warps *= 2) {
      for (int window_warps = 1; window_warps * filter_warps * 32 <= kPooledThreads; window_warps *= 2) {
        each_width(window_warps * kPooledMmaWindows,
                   [&](int tile_columns) { consider(window_warps, filter_warps, tile_columns); });
      }
    }
    return found_;
  }

  // Fills what was found, and gives the threads of a block.
  int finish(PooledParams& params) const {
    finish_tile(params);
    params.filter_warps = filter_warps_;
    params.block_filters = filter_warps_ * kPooledMmaFilters;
    params.pitch = pitch(chunk_);
    params.column_classes = FastDiv(classes());
    params.class_columns = static_cast<int>(ceil_div(params.box_columns.divisor(), classes()));
    params.chunk_pairs = FastDiv(chunk_ / 2);
    params.vectors = FastDiv(chunk_ / 8);
    params.box_pixels = FastDiv(params.tile_rows * params.box_rows * params.box_columns.divisor());
    return window_warps_ * filter_warps_ * 32;
  }

 private:
  int classes() const { return kPooledWindow * problem_.stride_w; }
  // An odd number of 16-byte vectors.
  static int pitch(int chunk) { return chunk + 8; }

  void consider(int window_warps, int filter_warps, int tile_columns) {
    const int slots = window_warps * kPooledMmaWindows;
    const int tile_rows = std::min(slots / tile_columns, rows_);
    const int64_t columns = box_columns(tile_columns);
    constexpr int64_t kElements = kPooledMmaArenaBytes / 2;
    if (box_rows_ > kElements || columns > kElements || classes() > kElements) return;
    const int64_t pixels = tile_rows * box_rows_ * ceil_div(columns, classes()) * classes();
    const int filters = filter_warps * kPooledMmaFilters;
    const int64_t room = kElements - pixels * 8;
    const int64_t fits = room / (pixels + int64_t{taps_} * filters) / 16 * 16;
    if (room < 0 || fits == 0) return;
    const int channels = (problem_.c + 15) / 16 * 16;
    const int chunk = static_cast<int>(std::min<int64_t>(fits, channels));

    const int warps = window_warps * filter_warps;
    const bool resident = chunk == channels;
    const int64_t tiles = ceil_div(rows_, tile_rows) * ceil_div(columns_, tile_columns);
    const int64_t filter_tiles = ceil_div(problem_.k, filters);
    const int blocks_at_once = blocks_of_sm(warps * 32);
    // With resident weights as many tiles a block as leave every SM its blocks.
    const double tiles_per_block =
        resident
            ? std::max(1.0, static_cast<double>(tiles * filter_tiles) / (chip_.sm_count * blocks_at_once))
            : 1;
    const double pixel_vectors = static_cast<double>(tile_rows * box_rows_ * columns) * channels / 8;
    const double weight_pairs = static_cast<double>(taps_) * filters * channels / 2 / tiles_per_block;
    const double cost = clocks(kPerStep * taps_ * channels / 16,
                               (pixel_vectors + weight_pairs) / (warps * 32), ceil_div(channels, chunk),
                               ceil_div(tiles * filter_tiles, chip_.sm_count), warps, blocks_at_once);
    if (!keep(cost, tile_rows, tile_columns, chunk)) return;
    window_warps_ = window_warps;
    filter_warps_ = filter_warps;
  }

  int window_warps_ = 1, filter_warps_ = 1;
};

// Whether a convolution on tensor cores and a pool take less time than the FMA units' part of the fused
// kernel. Full SMs are taken for granted on both sides.
bool faster_separately(const Conv2dParams& fused, bool three_by_three, const Chip& chip) {
  const Conv2dProblem& problem = fused.problem;
  const Rates rates = rates_of_sm(chip);
  const double sms = chip.sm_count, bytes = dtype_size(fused.dtype);
  const auto elements = [&](int channels, int h, int w) {
    return static_cast<double>(problem.n) * channels * h * w;
  };
  const double results = elements(problem.k, problem.p, problem.q);
  const double depth = static_cast<double>(problem.c) * problem.r * problem.s;
  constexpr int kUnits = 128;                                               // of an SM
  constexpr int kResults = kPooledWindow * kPooledWindow * kPooledFilters;  // of a thread
  const double instructions = depth * (three_by_three ? kPerProduct : kPerAnyProduct) + kPerTile / kResults;
  const double together = results * instructions / (kUnits * sms);
  // The convolution's output is written and read.
  const double moved = 2 * results * bytes / (rates.bytes * sms) + kPerLaunch;
  const double read = elements(problem.c, problem.h, problem.w) * bytes / (rates.bytes * sms);
  const double multiplied = results * depth / (rates.products * sms);
  if (moved + std::max(read, multiplied) >= together || problem.depthwise()) return false;

  Conv2dParams conv = fused;
  TensorView& output = conv.output;  // a new tensor
  const bool channels_last = output.stride_c == 1;
  output.data = nullptr;
  output.stride_n = int64_t{problem.k} * problem.p * problem.q;
  output.stride_c = channels_last ? 1 : int64_t{problem.p} * problem.q;
  output.stride_w = channels_last ? problem.k : 1;
  output.stride_h = problem.q * output.stride_w;
  const std::optional<ThinPlan> thin = plan_thin(Conv2dPass::kFprop, conv, chip);
  return thin ? thin->tensor_cores : plan_pointwise(Conv2dPass::kFprop, conv, chip).has_value();
}

PooledPlan refused(const char* why) {
  PooledPlan plan;
  plan.reason = why;
  return plan;
}

}  // namespace

PooledPlan plan_pooled(const Conv2dParams& conv, const TensorView& offsets, const Chip& chip) {
  const Conv2dProblem& problem = conv.problem;
  if (problem.groups != 1) return refused("groups: a convolution, then a pool");
  if (conv.dtype == DType::kFloat64) return refused("float64: a convolution, then a pool");
  const int pooled_h = problem.p / kPooledWindow, pooled_w = problem.q / kPooledWindow;
  const int64_t rows = int64_t{problem.n} * pooled_h;
  const int64_t taps = int64_t{problem.r} * problem.s;
  for (const int extent : {problem.stride_h, problem.stride_w, problem.dilation_h, problem.dilation_w}) {
    if (extent > kMostExtent) return refused("strides or dilations past 2^20: a convolution, then a pool");
  }
  constexpr const char* kTooLarge =
      "a filter, or the pixels that a window sees, exceed shared memory: a convolution, then a pool";
  constexpr const char* kTooManyTiles = "more tiles than one launch can count: a convolution, then a pool";
  if (rows > kMostIndex) return refused(kTooManyTiles);
  if (rows < 1 || pooled_w < 1 || taps > kPooledArena) return refused(kTooLarge);

  const int bytes = dtype_size(conv.dtype);
  int vector = problem.c % (16 / bytes) == 0 &&
                       channels_align(conv.input, problem.n, problem.h, problem.w, 16 / bytes, bytes)
                   ? 16 / bytes
                   : 1;
  PooledPlan plan;
  plan.three_by_three = problem.r == 3 && problem.s == 3 && problem.stride_h == 1 && problem.stride_w == 1 &&
                        problem.dilation_h == 1 && problem.dilation_w == 1;
  PooledParams& params = plan.params;
  Search search(problem, static_cast<int>(rows), pooled_w, plan.three_by_three, chip);
  MmaSearch mma_search(problem, static_cast<int>(rows), pooled_w, chip);
  // Single channels fit where several do not.
  int access = vector;
  bool found = search.run(access);
  if (!found && vector > 1) found = search.run(access = 1);
  // On tensor cores, unless so few windows are faster spread over more SMs.
  plan.tensor_cores = bytes == 2 && problem.c >= kLeastMmaChannels && taps <= kPooledMmaTaps &&
                      chip.shared_bytes_per_block >= kPooledMmaArenaBytes + 4 * 1024 && mma_search.run() &&
                      (!found || mma_search.cost() <= search.cost());
  if (!plan.tensor_cores && faster_separately(conv, plan.three_by_three, chip)) {
    return refused("on FMA units one kernel would take longer: a convolution on tensor cores, then a pool");
  }
  if (plan.tensor_cores) {
    plan.threads = mma_search.finish(params);
  } else if (found) {
    vector = access;
    plan.threads = search.finish(params);
    params.chunk_div = FastDiv(params.chunk);
    params.vectors = FastDiv(vector > 1 ? params.chunk / vector : 1);
  } else {
    return refused(kTooLarge);
  }
  params.input = conv.input;
  params.weight = conv.weight;
  params.output = conv.output;
  params.offsets = offsets;
  params.epilogue = conv.epilogue;
  params.channels = problem.c;
  params.filters = problem.k;
  params.taps = static_cast<int>(taps);
  params.image_h = problem.h;
  params.image_w = problem.w;
  params.stride_h = problem.stride_h;
  params.stride_w = problem.stride_w;
  params.pad_top = problem.pad_top;
  params.pad_left = problem.pad_left;
  params.dilation_h = problem.dilation_h;
  params.dilation_w = problem.dilation_w;
  params.rows = static_cast<int>(rows);
  params.columns = pooled_w;
  params.channels_fast = vector > 1;
  params.weight_channels_inner = conv.weight.stride_c < conv.weight.stride_w && problem.c > 1;
  params.vector_store =
      problem.k % kPooledFilters == 0 &&
      channels_align(params.output, problem.n, pooled_h, pooled_w, kPooledFilters, bytes) &&
      (offsets.data == nullptr || channels_align(offsets, problem.n, pooled_h, pooled_w, kPooledFilters, 1));
  params.image_rows = FastDiv(pooled_h);
  const int column_tiles = static_cast<int>(ceil_div(params.columns, params.tile_columns));
  const int filter_tiles = static_cast<int>(ceil_div(problem.k, params.block_filters));
  params.column_tiles = FastDiv(column_tiles);
  params.filter_tiles = FastDiv(filter_tiles);
  params.box_row_div = FastDiv(params.box_rows);
  params.tile_column_div = FastDiv(params.tile_columns);
  params.kernel_w = FastDiv(problem.s);
  params.tap_div = FastDiv(params.taps);
  const int64_t tiles = int64_t{params.row_tiles} * column_tiles;
  if (tiles > kMostIndex) return refused(kTooManyTiles);
  // Weights that stay in shared memory are worth a block of many tiles: one round of blocks.
  if (params.chunk >= problem.c && params.slices == 1) {
    const int64_t resident =
        plan.tensor_cores ? mma_search.resident(plan.threads) : search.resident(plan.threads);
    const int64_t blocks = std::max<int64_t>(1, resident / filter_tiles);  // of each tile of filters
    params.tiles_per_block = static_cast<int>(ceil_div(tiles, blocks));
  }
  plan.grid = ceil_div(tiles, params.tiles_per_block) * filter_tiles;
  if (plan.grid > kMostIndex) {
    return refused(kTooManyTiles);
  }
  plan.fused = true;
  plan.shared_bytes = plan.tensor_cores ? kMmaBytes : kFmaBytes;
  plan.tile = std::to_string(params.tile_rows) + "x" + std::to_string(params.tile_columns) + " windows x " +
              std::to_string(params.block_filters) + " filters, " + std::to_string(params.chunk) +
              " channels at a time by " + std::to_string(params.slices) + " slice(s), " +
              std::to_string(params.tiles_per_block) + " tile(s) a block";
  plan.reason = std::string("convolution, activation and pool in one kernel, on ") +
                (plan.tensor_cores     ? "tensor cores"
                 : plan.three_by_three ? "FMA units, 3x3 unrolled"
                                       : "FMA units") +
                (vector > 1 ? "; 16-byte loads" : "; channels do not come in contiguous, aligned 16 bytes");
  return plan;
}

PlanText describe(const PooledPlan& plan) {
  PlanText text;
  text.kernel = plan.tensor_cores ? "pooled_fprop_mma" : "pooled_fprop";
  text.tile = plan.tile;
  text.reason = plan.reason;
  text.grid = plan.grid;
  text.threads = plan.threads;
  text.shared_bytes = plan.shared_bytes;
  return text;
}

void launch_pooled(const PooledPlan& plan, DType dtype, cudaStream_t stream) {
  visit_narrow_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) == 2) {
      if (plan.tensor_cores) return pooled::launch_mma<T>(plan, stream);
    }
    pooled::launch_fma<T>(plan, stream);
  });
}

}  // namespace fastcnn
