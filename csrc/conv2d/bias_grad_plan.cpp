#include <algorithm>

#include "conv2d/bias_grad.h"
#include "conv2d/launch_size.h"

namespace fastcnn {
namespace {

constexpr int kMaxThreads = 256;

bool multiple(int64_t stride, int extent, int vector) {
  return extent <= 1 || stride % vector == 0;
}

}  // namespace

BiasGradPlan plan_bias_grad(const BiasGradParams& params, const Chip& chip, int64_t launch_pixels) {
  const TensorView& grad = params.grad;
  const int bytes = dtype_size(params.dtype);
  const int vector = 16 / bytes;
  const bool address_aligned = reinterpret_cast<uintptr_t>(grad.data) % 16 == 0;
  const int64_t image = static_cast<int64_t>(params.p) * params.q;

  BiasGradPlan plan;
  plan.rows = params.p;
  plan.columns = params.q;
  const bool dense_rows = params.p == 1 || params.q == 1 || grad.stride_h == params.q * grad.stride_w;
  const bool channels_fast =
      params.k > 1 && (image == 1 || grad.stride_c < (params.q > 1 ? grad.stride_w : grad.stride_h));
  if (channels_fast) {
    if (address_aligned && grad.stride_c == 1 && params.k % vector == 0 &&
        multiple(grad.stride_n, params.n, vector) && multiple(grad.stride_h, params.p, vector) &&
        multiple(grad.stride_w, params.q, vector)) {
      plan.channel_vector = vector;
    }
  } else if (address_aligned && grad.stride_w == 1 && params.q > 1 && dense_rows && image < kLaunchPixels &&
             image % vector == 0 && multiple(grad.stride_n, params.n, vector) &&
             multiple(grad.stride_c, params.k, vector)) {
    plan.pixel_vector = vector;
    plan.rows = 1;
    plan.columns = static_cast<int>(image / vector);
  }

  const int64_t image_vectors = static_cast<int64_t>(plan.rows) * plan.columns;
  const int64_t pixels = image_vectors * params.n;
  const int64_t channel_groups = params.k / plan.channel_vector;
  const int max_fast = channels_fast ? (plan.channel_vector > 1 ? 8 : 32) : kMaxThreads;
  plan.tile = choose_thread_tile(channels_fast, channel_groups, pixels, max_fast, kMaxThreads);
  const int64_t channel_tiles = std::max<int64_t>(1, ceil_div(channel_groups, plan.tile.channel_threads));
  plan.images_per_launch =
      images_per_launch(params.n, image_vectors, plan.tile.pixel_threads, channel_tiles, launch_pixels);
  plan.launches = static_cast<int>(std::max<int64_t>(1, ceil_div(params.n, plan.images_per_launch)));

  const int64_t pixels_to_split = std::min<int64_t>(plan.images_per_launch, params.n) * image_vectors;
  const int64_t wanted = ceil_div(int64_t{4} * chip.sm_count, channel_tiles);
  const int64_t worthwhile = ceil_div(pixels_to_split, int64_t{16} * plan.tile.pixel_threads);
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, worthwhile));
  plan.split_pixels = std::max<int64_t>(1, ceil_div(pixels_to_split, splits));
  plan.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(pixels_to_split, plan.split_pixels)));
  plan.grid = params.k == 0 ? 0 : channel_tiles * plan.splits;
  plan.workspace_bytes =
      static_cast<size_t>(plan.launches) * plan.splits * params.k * (params.dtype == DType::kFloat64 ? 8 : 4);
  return plan;
}

}  // namespace fastcnn
