#include <algorithm>
#include <stdexcept>

#include "conv2d/depthwise.h"
#include "conv2d/launch_size.h"

namespace fastcnn {
namespace {

constexpr int kMinThreads = 64;
constexpr size_t kMaxWorkspaceBytes = size_t{32} << 20;

// Whether vectors of `vector` channels can be moved as one access: channels lie side by side, and every step
// to another pixel or image keeps the alignment.
bool channels_align(const TensorView& view, const int extent[3], int vector, int element_bytes) {
  const auto aligned = [&](int64_t stride, int size) { return size <= 1 || stride % vector == 0; };
  return view.stride_c == 1 && aligned(view.stride_n, extent[0]) && aligned(view.stride_h, extent[1]) &&
         aligned(view.stride_w, extent[2]) &&
         reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(vector * element_bytes) == 0;
}

// Lanes run along channels unless pixels of a row lie closer together.
bool channels_fast(const TensorView& view, int channels, int columns) {
  return channels > 1 && (columns == 1 || view.stride_c < view.stride_w);
}

std::string describe(const char* pass, const DepthwisePlan& plan) {
  return std::string("depthwise_") + pass + (plan.tile.channels_fast ? "_nhwc" : "_nchw") + "_v" +
         std::to_string(plan.vector);
}

}  // namespace

DepthwisePlan plan_depthwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  const int accumulator_bytes = params.dtype == DType::kFloat64 ? 8 : 4;
  const int multiplier = problem.filters_per_group();
  const bool wgrad = pass == Conv2dPass::kWgrad;
  const bool dgrad = pass == Conv2dPass::kDgrad;

  // x has the image's extents, y the output's; each pass reads or writes both, or reads both.
  const TensorView& x = dgrad ? params.output : params.input;
  const TensorView& y = wgrad ? params.grad : (dgrad ? params.input : params.output);
  const int x_extent[3] = {problem.n, problem.h, problem.w};
  const int y_extent[3] = {problem.n, problem.p, problem.q};

  DepthwisePlan plan;
  const int widest = wgrad ? std::min(4, 16 / bytes) : 16 / bytes;
  if (multiplier != 1) {
    plan.reason = "one channel per thread: each input channel has " + std::to_string(multiplier) + " filters";
  } else if (problem.c % widest != 0) {
    plan.reason = "one channel per thread: " + std::to_string(problem.c) + " channels are no multiple of " +
                  std::to_string(widest);
  } else if (!channels_align(x, x_extent, widest, bytes) || !channels_align(y, y_extent, widest, bytes)) {
    plan.reason = "one channel per thread: channels do not lie side by side in both tensors, or not aligned";
  } else {
    plan.vector = widest;
    plan.reason = "channels lie side by side: " + std::to_string(widest) + " per thread, one " +
                  std::to_string(widest * bytes) + "-byte access";
  }

  // The tensor that the threads are spread over: its channels and pixels.
  const int channels = dgrad ? problem.c : problem.k;
  const int64_t channel_groups = channels / plan.vector;
  const bool lanes_along_channels = plan.vector > 1 || (dgrad ? channels_fast(x, channels, problem.w)
                                                              : channels_fast(y, channels, problem.q));
  int64_t image_groups = static_cast<int64_t>(problem.p) * problem.q;
  if (pass == Conv2dPass::kFprop) image_groups = ceil_div(problem.p, kDepthwiseRows) * problem.q;
  if (dgrad) {
    image_groups =
        ceil_div(problem.h, int64_t{kDepthwiseRows} * problem.stride_h) * problem.stride_h * problem.w;
  }
  const int64_t pixel_groups = image_groups * problem.n;

  // 128 bytes of channels side by side make a full cache line; fewer channels per block share less weight.
  const int max_fast =
      lanes_along_channels ? (plan.vector > 1 ? 128 / (plan.vector * bytes) : 32) : kDepthwiseThreads;
  int threads = kDepthwiseThreads;
  int64_t channel_tiles = 0;
  for (;; threads /= 2) {
    plan.tile = choose_thread_tile(lanes_along_channels, channel_groups, pixel_groups, max_fast, threads);
    channel_tiles = ceil_div(channel_groups, plan.tile.channel_threads);
    const int64_t blocks = channel_tiles * ceil_div(pixel_groups, plan.tile.pixel_threads);
    if (wgrad || threads == kMinThreads || blocks >= 2 * chip.sm_count) break;
  }

  if (wgrad) {
    const int64_t windows =
        ceil_div(problem.r, kDepthwiseTapWindow) * ceil_div(problem.s, kDepthwiseTapWindow);
    plan.images_per_launch =
        images_per_launch(problem.n, image_groups, plan.tile.pixel_threads, channel_tiles * windows);
    plan.launches = static_cast<int>(std::max<int64_t>(1, ceil_div(problem.n, plan.images_per_launch)));
    // Four blocks per SM even out the tail; each must have enough pixels to be worth its reduction.
    const int64_t launch_pixels = std::min<int64_t>(plan.images_per_launch, problem.n) * image_groups;
    const int64_t wanted = ceil_div(int64_t{4} * chip.sm_count, channel_tiles * windows);
    const int64_t worthwhile = ceil_div(launch_pixels, int64_t{16} * plan.tile.pixel_threads);
    const int64_t split_bytes =
        static_cast<int64_t>(problem.k) * problem.r * problem.s * accumulator_bytes * plan.launches;
    const int64_t affordable = static_cast<int64_t>(kMaxWorkspaceBytes) / std::max<int64_t>(1, split_bytes);
    const int64_t splits = std::max<int64_t>(1, std::min({wanted, worthwhile, affordable}));
    plan.split_pixels = std::max<int64_t>(1, ceil_div(launch_pixels, splits));
    plan.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(launch_pixels, plan.split_pixels)));
    plan.workspace_bytes = static_cast<size_t>(split_bytes * plan.splits);
    plan.grid = channel_tiles * windows * plan.splits;
    plan.shared_bytes = depthwise_wgrad_shared_bytes(plan.vector, accumulator_bytes);
    plan.path = describe("wgrad", plan);
    return plan;
  }

  plan.images_per_launch = images_per_launch(problem.n, image_groups, plan.tile.pixel_threads, channel_tiles);
  plan.launches = static_cast<int>(ceil_div(problem.n, plan.images_per_launch));
  plan.grid = channel_tiles * ceil_div(std::min<int64_t>(plan.images_per_launch, problem.n) * image_groups,
                                       plan.tile.pixel_threads);
  const int64_t taps = static_cast<int64_t>(dgrad ? multiplier : 1) * problem.r * problem.s;
  plan.shared_bytes = kDepthwiseWeightBytes;
  const int capacity = kDepthwiseWeightBytes / bytes / (plan.tile.channel_threads * plan.vector);
  plan.weight_taps = static_cast<int>(std::min<int64_t>(taps, capacity));
  plan.path = describe(dgrad ? "dgrad" : "fprop", plan);
  return plan;
}

}  // namespace fastcnn
