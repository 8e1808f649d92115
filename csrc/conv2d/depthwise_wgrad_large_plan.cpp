// What depthwise wgrad with many taps brings at a time, and its splits: by counted FMAs and bytes.
#include <algorithm>
#include <utility>

#include "conv2d/depthwise.h"
#include "conv2d/depthwise_axis_plan.h"

namespace fastcnn {
namespace {

using namespace depthwise;

// Fewer taps than these, memory bounds; the sweep brings them by wider loads.
constexpr int64_t kFewestTaps = 24, kFewestSweptTaps = 9 * 9 + 1;
// The part of the time that FMAs take, by count: six loads of shared memory for 128 of them here, one for
// three to five in the sweep, one for each where the window kernel takes what the sweep leaves.
constexpr double kBusyHere = 0.75, kBusyInSweep = 0.6, kBusyInWindow = 0.15;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;
constexpr int64_t kMostIndex = int64_t{1} << 30;
constexpr int kFewestPartRows = 8;
// What an SM of a Hopper chip does in a cycle: FMAs, and bytes of its share of what L2 and memory bring.
constexpr double kFmas = 128, kCacheBytes = 24, kMemoryBytes = 18;
constexpr int64_t kSectorBytes = 32;
// Partial sums weigh more than their bytes: blocks write them when nothing else is left to do, and split_sum
// is a kernel of its own.
constexpr double kSumsWeight = 4, kSecondKernelCycles = 4000;
constexpr double kStripsWeight = 1.1;
// What a block takes beside its stages, in stages.
constexpr double kBlockStages = 0.25;

// Floats in 16-byte units, an odd number of them: lanes one row or plane apart read from different banks.
int64_t odd_units(int64_t floats) {
  return 4 * (ceil_div(floats, 4) | 1);
}

// The filter's taps as targets, dy's pixels as taps: strides and dilations change places.
Conv2dProblem exchanged(Conv2dProblem problem) {
  std::swap(problem.r, problem.p);
  std::swap(problem.s, problem.q);
  std::swap(problem.stride_h, problem.dilation_h);
  std::swap(problem.stride_w, problem.dilation_w);
  return problem;
}

// How a problem lies on the blocks, with so many channels each. No rows where it does not fit.
struct Layout {
  int64_t channels = 1;
  int64_t stage_rows = 0, stage_images = 1;
  int64_t lanes = 1, parts = 1;
  int64_t blocks = 0, stages = 0, splits = 1;
  double cycles = 0;
};

class LargeWgrad {
 public:
  LargeWgrad(const Conv2dParams& conv, const Chip& chip)
      : conv_(conv),
        problem_(conv.problem),
        chip_(chip),
        resident_(std::clamp(chip.shared_bytes_per_block / (kLargeWgradFloats * 4 + 1024), 1, 3)),
        rows(rows_of(Conv2dPass::kFprop, exchanged(conv.problem))),
        columns(columns_of(Conv2dPass::kFprop, exchanged(conv.problem))) {
    set_block(rows, class_targets(rows));
    set_block(columns, class_targets(columns));
    classes = int64_t{rows.classes} * columns.classes;
    cell_columns = ceil_div(columns.block, kDepthwiseCellColumns);
    cells = ceil_div(rows.block, kDepthwiseCellRows) * cell_columns;
    x_columns = std::min(ceil_div(columns.source, columns.dilation.divisor()),
                         int64_t{problem_.q} + columns.block - 1);
    // Cells begin at every fourth column of dy, and read on to the next whole eight.
    const int64_t read = ceil_div(problem_.q, 8) * 8 + 4;
    x_pitch = odd_units(cell_columns * kDepthwiseCellColumns + read);
    dy_pitch = odd_units(read);
  }

  int64_t x_rows(int64_t stage_rows) const {
    return std::min(ceil_div(rows.source, rows.dilation.divisor()), stage_rows + rows.block - 1);
  }
  int64_t x_plane(int64_t stage_rows) const { return odd_units(x_rows(stage_rows) * x_pitch); }
  int64_t dy_plane(int64_t stage_rows) const { return odd_units(stage_rows * dy_pitch); }
  int64_t strips(const Layout& layout) const { return ceil_div(problem_.p, layout.stage_rows); }
  int64_t partial_bytes() const {
    return problem_.c * (int64_t{problem_.r} * problem_.s + (conv_.bias_grad != nullptr ? 1 : 0)) *
           static_cast<int64_t>(sizeof(float));
  }

  Layout with_channels(int64_t channels) const {
    Layout layout;
    layout.channels = channels;
    const auto floats = [&](int64_t stage_rows) {
      return channels * (x_plane(stage_rows) + dy_plane(stage_rows));
    };
    if (floats(1) > kLargeWgradFloats) return layout;
    int64_t strips = 1;
    while (strips <= problem_.p && floats(ceil_div(problem_.p, strips)) > kLargeWgradFloats) ++strips;
    if (strips > problem_.p || channels * cells > kLargeWgradThreads) return layout;
    layout.stage_rows = ceil_div(problem_.p, strips);

    // Threads with the same cell take other images, or other rows of the only one.
    const int64_t sharing = kLargeWgradThreads / (channels * cells);
    const int64_t images =
        strips > 1 ? 1 : std::min<int64_t>(problem_.n, kLargeWgradFloats / floats(problem_.p));
    layout.lanes = std::min(sharing, images);
    layout.parts = std::clamp<int64_t>(layout.stage_rows / kFewestPartRows, 1, sharing / layout.lanes);
    layout.blocks = ceil_div(problem_.c, channels) * classes;
    // More images a stage where that leaves every place on the chip two stages.
    layout.stage_images = layout.lanes;
    const auto stages = [&](int64_t at_a_time) { return ceil_div(problem_.n, at_a_time) * strips; };
    while (layout.stage_images + layout.lanes <= images &&
           layout.blocks * stages(layout.stage_images + layout.lanes) >= 2 * resident_ * chip_.sm_count) {
      layout.stage_images += layout.lanes;
    }
    layout.stages = stages(layout.stage_images);
    split(layout);
    return layout;
  }

 private:
  // Elements that all blocks of a split-less grid bring.
  double brought(const Layout& layout) const {
    const int64_t low = ceil_div(problem_.pad_top, rows.dilation.divisor());
    const int64_t high = low + ceil_div(rows.source, rows.dilation.divisor());
    int64_t seen = 0;  // rows of x
    for (int64_t p = 0; p < problem_.p; p += layout.stage_rows) {
      const int64_t end = std::min<int64_t>(p + layout.stage_rows, problem_.p) + rows.block - 1;
      seen += std::max<int64_t>(0, std::min(high, end) - std::max(low, p));
    }
    return static_cast<double>(seen * x_columns + int64_t{problem_.p} * problem_.q) *
           static_cast<double>(int64_t{problem_.n} * problem_.c * classes);
  }

  // The splits that take the least time, and that time.
  void split(Layout& layout) const {
    // The rows of a cell meet a thread's rows of dy one after the other: at both ends one of them is idle.
    const int64_t part_rows = ceil_div(layout.stage_rows, layout.parts);
    const double fmas = static_cast<double>(cells * kDepthwiseCellRows * kDepthwiseCellColumns * classes) *
                        static_cast<double>(problem_.output_pixels() * problem_.c) *
                        (1 + 1 / static_cast<double>(part_rows));
    // Sectors hold channels side by side, of which a block takes some.
    const int64_t bytes = dtype_size(conv_.dtype);
    const bool sides = problem_.c > 1 && conv_.input.stride_c == 1;
    const int64_t fetched = sides ? std::max(bytes, kSectorBytes / layout.channels) : bytes;
    const double work = fmas / kFmas + brought(layout) * (static_cast<double>(fetched) / kCacheBytes +
                                                          static_cast<double>(bytes) / kMemoryBytes);
    // Strips bring rows again: only where that saves time.
    const double strips_cost = strips(layout) > 1 ? kStripsWeight : 1;
    const int64_t most = std::min(layout.stages, std::max<int64_t>(1, kMostWorkspace / partial_bytes()));
    for (int64_t wanted = 1; wanted <= most;) {
      const int64_t stages = ceil_div(layout.stages, wanted), splits = ceil_div(layout.stages, stages);
      wanted = stages == 1 ? most + 1 : ceil_div(layout.stages, stages - 1);
      const double share =
          (static_cast<double>(stages) + kBlockStages) / static_cast<double>(layout.stages * layout.blocks);
      const double sums = kSumsWeight * static_cast<double>(2 * splits * partial_bytes()) / kMemoryBytes;
      const double cycles =
          strips_cost * work * share * chip_time(layout.blocks * splits, chip_.sm_count, resident_) +
          (splits == 1 ? 0 : sums / chip_.sm_count + kSecondKernelCycles);
      if (layout.cycles == 0 || cycles < layout.cycles) {
        layout.cycles = cycles;
        layout.splits = splits;
      }
    }
  }

  const Conv2dParams& conv_;
  const Conv2dProblem& problem_;
  const Chip& chip_;
  const int resident_;

 public:
  DepthwiseAxis rows, columns;
  int64_t classes = 1;
  int64_t cells = 0, cell_columns = 0;
  int64_t x_columns = 0, x_pitch = 0, dy_pitch = 0;
};

bool covered(const Conv2dParams& conv, bool swept) {
  const Conv2dProblem& problem = conv.problem;
  if (conv.dtype == DType::kFloat64 || problem.filters_per_group() != 1 ||
      int64_t{problem.r} * problem.s < (swept ? kFewestSweptTaps : kFewestTaps)) {
    return false;
  }
  for (const int extent : {problem.n, problem.h, problem.w, problem.p, problem.q}) {
    if (extent < 1) return false;
  }
  if (problem.stride_h % problem.dilation_h != 0 || problem.stride_w % problem.dilation_w != 0) return false;
  const auto reach = [](int image, int output, int taps, int stride) {
    return int64_t{image} + output + int64_t{2} * stride * std::max(taps, output);
  };
  return std::max(reach(problem.h, problem.p, problem.r, problem.stride_h),
                  reach(problem.w, problem.q, problem.s, problem.stride_w)) < kMostIndex;
}

// Whether the other kernel takes no longer, by its FMAs for an element of dy.
bool other_as_good(const Conv2dProblem& problem, bool swept, const LargeWgrad& shape) {
  const double here = static_cast<double>(shape.cells * shape.classes) * kDepthwiseCellRows *
                      kDepthwiseCellColumns / kBusyHere;
  const double taps = double{1} * problem.r * problem.s;
  if (!swept) return taps / kBusyInWindow <= here;
  const int64_t windows = ceil_div(problem.r, kSweepAnyWindow) * ceil_div(problem.s, kSweepAnyWindow);
  const double there = static_cast<double>(windows) * kSweepAnyWindow * kSweepAnyWindow / kBusyInSweep;
  return windows <= kSweepMostWindows && there <= here;
}

}  // namespace

std::optional<DepthwiseLargeWgradPlan> plan_depthwise_large_wgrad(const Conv2dParams& conv, bool swept,
                                                                  const Chip& chip) {
  if (!covered(conv, swept) || chip.shared_bytes_per_block < kLargeWgradFloats * 4) return std::nullopt;
  const Conv2dProblem& problem = conv.problem;
  const LargeWgrad shape(conv, chip);
  if (other_as_good(problem, swept, shape)) return std::nullopt;
  Layout layout;
  for (const int64_t channels : {4, 2, 1}) {
    const int bytes = dtype_size(conv.dtype), vector = static_cast<int>(channels);
    const bool aligned = problem.c % vector == 0 &&
                         reinterpret_cast<uintptr_t>(conv.grad_activation.saved) % (vector * bytes) == 0 &&
                         channels_align(conv.input, problem.n, problem.h, problem.w, vector, bytes) &&
                         channels_align(conv.grad, problem.n, problem.p, problem.q, vector, bytes);
    if (channels > 1 && !aligned) continue;
    const Layout other = shape.with_channels(channels);
    if (other.stage_rows != 0 && (layout.stage_rows == 0 || other.cycles < layout.cycles)) layout = other;
  }
  const int64_t strips = layout.stage_rows == 0 ? 0 : shape.strips(layout);
  const int64_t grid = layout.blocks * layout.splits;
  if (strips == 0 || layout.stages > kMostIndex || grid > kMostIndex) return std::nullopt;

  DepthwiseLargeWgradPlan plan;
  DepthwiseLargeWgradParams& params = plan.params;
  const int64_t rows = layout.stage_rows, planes = layout.channels * layout.stage_images;
  params.rows = shape.rows;
  params.columns = shape.columns;
  params.images = problem.n;
  params.channels = problem.c;
  params.kernel_rows = problem.r;
  params.kernel_columns = problem.s;
  params.grad_rows = problem.p;
  params.grad_columns = FastDiv(problem.q);
  params.chunks = FastDiv(static_cast<int>(ceil_div(problem.c, layout.channels)));
  params.block_channels = FastDiv(static_cast<int>(layout.channels));
  params.lanes = FastDiv(static_cast<int>(layout.lanes));
  params.cells = FastDiv(static_cast<int>(shape.cells));
  params.cell_columns = FastDiv(static_cast<int>(shape.cell_columns));
  params.parts = static_cast<int>(layout.parts);
  params.part_rows = static_cast<int>(ceil_div(rows, layout.parts));
  params.strips = FastDiv(static_cast<int>(strips));
  params.stages = static_cast<int>(layout.stages);
  params.split_stages = static_cast<int>(ceil_div(layout.stages, layout.splits));
  params.stage_images = static_cast<int>(layout.stage_images);
  params.stage_rows = FastDiv(static_cast<int>(rows));
  params.x_rows = FastDiv(static_cast<int>(shape.x_rows(rows)));
  params.x_columns = FastDiv(static_cast<int>(shape.x_columns));
  params.x_pitch = static_cast<int>(shape.x_pitch);
  params.x_plane = static_cast<int>(shape.x_plane(rows));
  params.dy_start = static_cast<int>(planes * shape.x_plane(rows));
  params.dy_pitch = static_cast<int>(shape.dy_pitch);
  params.dy_plane = static_cast<int>(shape.dy_plane(rows));
  params.floats = static_cast<int>(planes * (shape.x_plane(rows) + shape.dy_plane(rows)));

  plan.kernel = "depthwise_wgrad_large";
  plan.grid = grid;
  plan.threads =
      static_cast<int>(ceil_div(layout.channels * layout.lanes * shape.cells * layout.parts, 32) * 32);
  plan.shared_bytes = sizeof(float) * kLargeWgradFloats;
  plan.splits = static_cast<int>(layout.splits);
  if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(layout.splits * shape.partial_bytes());
  plan.tile = std::to_string(rows) + " rows of dy of " + std::to_string(layout.channels) + " channels of " +
              std::to_string(layout.stage_images) + (layout.stage_images == 1 ? " image" : " images") +
              " at a time; a thread keeps 2 x 8 taps, " + std::to_string(layout.lanes * layout.parts) +
              (layout.lanes * layout.parts == 1 ? " thread the same" : " threads the same");
  plan.reason =
      std::to_string(problem.r) + "x" + std::to_string(problem.s) +
      " taps, one filter a channel: x and dy come once to shared memory, a block keeps the sums of all "
      "taps and slides them over dy";
  return plan;
}

}  // namespace fastcnn
