// What the two kernels of wgrad share: the tile of pixels in shared memory, and where sums go.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/grouped_box.cuh"

namespace fastcnn::grouped {

template <class T>
struct WgradShared {
  SharedArray<T, kArena<T>> arena;               // the box of x, behind it that of dy
  SharedArray<int, kGroupedWgradSlots> x_pixel;  // where the tile's pixels, numbered without gaps, lie
  SharedArray<int, kGroupedWgradSlots> dy_pixel;
};

// Brings the tile's boxes and writes the tables of its pixels; gives their number. Only pixels that exist are
// numbered: a product with one beyond the image would turn an infinity of x into NaN.
template <class T>
__device__ inline int bring_wgrad_tile(WgradShared<T>& shared, const GroupedWgradParams& params, int slab,
                                       int tile) {
  const int dy_start = params.x.pixels.divisor() * params.x.pitch;
  int tile_h, tile_w;
  const int image = params.tiles_h.divide(params.tiles_w.divide(tile, tile_w), tile_h) * params.dy.images;
  const int row = tile_h * params.dy.rows, column = tile_w * params.dy.columns;
  bring_box<false>(shared.arena, 0, params.x, slab, image, params.first_h + row * params.step_h,
                   params.first_w + column * params.step_w);
  bring_box<true>(shared.arena, dy_start, params.dy, slab, image, row, column);
  const int rows = min(params.dy.rows, params.out_h - row);
  const int columns = min(params.dy.columns, params.out_w - column);
  const int pixels = min(params.dy.images, params.dy.image_n - image) * rows * columns;
  for (int pixel = threadIdx.x; pixel < kGroupedWgradSlots; pixel += blockDim.x) {
    const int w = pixel % columns, h = pixel / columns % rows, n = pixel / columns / rows;
    const int x =
        ((n * params.x.rows + h * params.pixel_rows) * params.x.columns + w * params.pixel_columns) *
        params.x.pitch;
    const int dy = dy_start + ((n * params.dy.rows + h) * params.dy.columns + w) * params.dy.pitch;
    shared.x_pixel.store(pixel, pixel < pixels ? x : -1);
    shared.dy_pixel.store(pixel, pixel < pixels ? dy : -1);
  }
  return pixels;
}

// A split's partial sums: K x C/g x R x S, and K of the bias gradient where it is asked for.
__device__ inline float* split_partials(const GroupedWgradParams& params, int split) {
  const int64_t row =
      static_cast<int64_t>(params.group_in) * params.taps + (params.bias_grad != nullptr ? 1 : 0);
  return params.partials + split * row * params.channels_out;
}

// The sum of filter `filter` of the slab and channel `channel` of its group. Filters past the last, taps past
// the last are dropped.
template <class T>
__device__ inline void store_weight_sum(const GroupedWgradParams& params, int split, int slab, int filter,
                                        int channel, int tap, float sum) {
  const int64_t k = static_cast<int64_t>(slab) * params.slab_groups * params.group_out + filter;
  if (k >= params.channels_out || tap >= params.taps) return;
  if (params.partials == nullptr) {
    int s;
    const int r = params.s_div.divide(tap, s);
    store_global(static_cast<T*>(params.output.data) + k * params.output.stride_n +
                     channel * params.output.stride_c + r * params.output.stride_h +
                     s * params.output.stride_w,
                 from_accumulator<T>(sum));
  } else {
    store_global(split_partials(params, split) + (k * params.group_in + channel) * params.taps + tap, sum);
  }
}

template <class T>
__device__ inline void store_bias_sum(const GroupedWgradParams& params, int split, int slab, int filter,
                                      float sum) {
  const int64_t k = static_cast<int64_t>(slab) * params.slab_groups * params.group_out + filter;
  if (params.bias_grad == nullptr || k >= params.channels_out) return;
  if (params.partials == nullptr) {
    store_global(static_cast<T*>(params.bias_grad) + k, from_accumulator<T>(sum));
  } else {
    const int64_t weights = static_cast<int64_t>(params.channels_out) * params.group_in * params.taps;
    store_global(split_partials(params, split) + weights + k, sum);
  }
}

}  // namespace fastcnn::grouped
