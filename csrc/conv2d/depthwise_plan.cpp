#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "conv2d/depthwise.h"
#include "conv2d/launch_size.h"

namespace fastcnn {
namespace {

constexpr int kMinThreads = 64;
constexpr int64_t kMaxWorkspaceBytes = int64_t{32} << 20;

// Lanes run along channels unless pixels of a row lie closer together.
bool channels_fast(const TensorView& view, int channels, int columns) {
  return channels > 1 && (columns == 1 || view.stride_c < view.stride_w);
}

std::string describe(const char* pass, const DepthwisePlan& plan) {
  return std::string("depthwise_") + pass + (plan.tile.channels_fast ? "_nhwc" : "_nchw") + "_v" +
         std::to_string(plan.vector);
}

// The two tensors of a pass that have pixels: x with the image's extents, y with the output's.
struct PixelTensors {
  const TensorView& x;
  const TensorView& y;
};

PixelTensors pixel_tensors(Conv2dPass pass, const Conv2dParams& params) {
  switch (pass) {
    case Conv2dPass::kDgrad:
      return {params.output, params.grad};
    case Conv2dPass::kWgrad:
      return {params.input, params.grad};
    default:
      return {params.input, params.output};
  }
}

void choose_vector(Conv2dPass pass, const Conv2dParams& params, DepthwisePlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const PixelTensors tensors = pixel_tensors(pass, params);
  const int bytes = dtype_size(params.dtype);
  // wgrad has nine sums per channel in registers: four channels leave room for two blocks per SM.
  const int widest = pass == Conv2dPass::kWgrad ? std::min(4, 16 / bytes) : 16 / bytes;
  const std::string channels = std::to_string(widest);
  if (problem.filters_per_group() != 1) {
    plan.reason = "one channel per thread: every input channel has " +
                  std::to_string(problem.filters_per_group()) + " filters";
  } else if (problem.c % widest != 0) {
    plan.reason =
        "one channel per thread: " + std::to_string(problem.c) + " channels are no multiple of " + channels;
  } else if (!channels_align(tensors.x, problem.n, problem.h, problem.w, widest, bytes) ||
             !channels_align(tensors.y, problem.n, problem.p, problem.q, widest, bytes)) {
    plan.reason = "one channel per thread: channels do not lie side by side and aligned in both tensors";
  } else {
    plan.vector = widest;
    plan.reason = "channels lie side by side: " + channels + " per thread, one " +
                  std::to_string(widest * bytes) + "-byte access";
  }
}

// Cuts the pixels of a launch into splits: four blocks per SM even out the tail, but each must have enough
// pixels to be worth its reduction, and the partial sums must stay small.
void plan_splits(const Conv2dParams& params, const Chip& chip, int64_t blocks_per_split, int64_t pixels,
                 DepthwisePlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const int accumulator_bytes = params.dtype == DType::kFloat64 ? 8 : 4;
  const int64_t filter_sums = int64_t{problem.r} * problem.s + (params.bias_grad != nullptr ? 1 : 0);
  const int64_t split_bytes = problem.k * filter_sums * accumulator_bytes * plan.launches;
  const int64_t wanted = ceil_div(int64_t{4} * chip.sm_count, blocks_per_split);
  const int64_t worthwhile = ceil_div(pixels, int64_t{16} * plan.tile.pixel_threads);
  const int64_t affordable = kMaxWorkspaceBytes / std::max<int64_t>(1, split_bytes);
  const int64_t splits = std::max<int64_t>(1, std::min({wanted, worthwhile, affordable}));
  plan.split_pixels = std::max<int64_t>(1, ceil_div(pixels, splits));
  plan.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(pixels, plan.split_pixels)));
  plan.workspace_bytes = static_cast<size_t>(split_bytes * plan.splits);
  plan.grid = blocks_per_split * plan.splits;
  plan.shared_bytes = depthwise_wgrad_shared_bytes(plan.vector, accumulator_bytes);
}

// What one thread takes of an image's pixels: one each in wgrad, else kDepthwiseRows rows of a column.
int64_t image_pixel_groups(Conv2dPass pass, const Conv2dProblem& problem) {
  switch (pass) {
    case Conv2dPass::kFprop:
      return ceil_div(problem.p, kDepthwiseRows) * problem.q;
    case Conv2dPass::kDgrad:
      return depthwise_dgrad_row_groups(problem) * problem.w;
    default:
      return static_cast<int64_t>(problem.p) * problem.q;
  }
}

}  // namespace

DepthwisePlan plan_depthwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                             int64_t launch_pixels) {
  if (std::optional<DepthwiseImagePlan> image = plan_depthwise_image(pass, params, chip)) {
    DepthwisePlan plan;
    plan.launches = 1;
    plan.image = *std::move(image);
    return plan;
  }
  if (pass == Conv2dPass::kWgrad) {
    std::optional<DepthwisePlan> sweep = plan_depthwise_sweep(params, chip);
    if (auto large = plan_depthwise_large_wgrad(params, sweep.has_value(), chip)) {
      DepthwisePlan plan;
      plan.launches = 1;
      plan.splits = large->splits;
      plan.workspace_bytes = large->workspace_bytes;
      plan.large_wgrad = *std::move(large);
      return plan;
    }
    if (sweep) return *std::move(sweep);
  }
  return plan_any_depthwise(pass, params, chip, launch_pixels);
}

DepthwisePlan plan_any_depthwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                                 int64_t launch_pixels) {
  const Conv2dProblem& problem = params.problem;
  const bool wgrad = pass == Conv2dPass::kWgrad;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const int bytes = dtype_size(params.dtype);

  DepthwisePlan plan;
  choose_vector(pass, params, plan);

  // The threads are spread over dx in dgrad, else over y.
  const PixelTensors tensors = pixel_tensors(pass, params);
  const int channels = dgrad ? problem.c : problem.k;
  const int64_t channel_groups = channels / plan.vector;
  const bool lanes_along_channels =
      plan.vector > 1 ||
      (dgrad ? channels_fast(tensors.x, channels, problem.w) : channels_fast(tensors.y, channels, problem.q));
  const int64_t image_groups = image_pixel_groups(pass, problem);
  const int64_t pixel_groups = image_groups * problem.n;

  // 128 bytes of channels side by side fill a cache line; more channels in a block share less of the weights.
  const int max_fast =
      lanes_along_channels ? (plan.vector > 1 ? 128 / (plan.vector * bytes) : 32) : kDepthwiseThreads;
  // Small problems take smaller blocks, until every SM has two.
  int64_t channel_tiles = 0;
  for (int threads = kDepthwiseThreads;; threads /= 2) {
    plan.tile = choose_thread_tile(lanes_along_channels, channel_groups, pixel_groups, max_fast, threads);
    channel_tiles = ceil_div(channel_groups, plan.tile.channel_threads);
    const int64_t blocks = channel_tiles * ceil_div(pixel_groups, plan.tile.pixel_threads);
    if (wgrad || threads == kMinThreads || blocks >= 2 * chip.sm_count) break;
  }

  const int64_t windows =
      wgrad ? ceil_div(problem.r, kDepthwiseTapWindow) * ceil_div(problem.s, kDepthwiseTapWindow) : 1;
  const int64_t pixel_blocks = channel_tiles * windows;
  plan.images_per_launch =
      images_per_launch(problem.n, image_groups, plan.tile.pixel_threads, pixel_blocks, launch_pixels);
  // An empty batch has a weight gradient all the same: zero.
  plan.launches = std::max(wgrad ? 1 : 0, static_cast<int>(ceil_div(problem.n, plan.images_per_launch)));
  const int64_t pixels = std::min(plan.images_per_launch, problem.n) * image_groups;
  if (wgrad) {
    plan_splits(params, chip, pixel_blocks, pixels, plan);
    plan.path = describe("wgrad", plan);
    return plan;
  }

  const int64_t taps = static_cast<int64_t>(dgrad ? problem.filters_per_group() : 1) * problem.r * problem.s;
  const int64_t capacity = kDepthwiseWeightBytes / bytes / (plan.tile.channel_threads * plan.vector);
  plan.weight_taps = static_cast<int>(std::min(taps, capacity));
  plan.grid = channel_tiles * ceil_div(pixels, plan.tile.pixel_threads);
  plan.shared_bytes = kDepthwiseWeightBytes;
  plan.path = describe(dgrad ? "dgrad" : "fprop", plan);
  return plan;
}

}  // namespace fastcnn
