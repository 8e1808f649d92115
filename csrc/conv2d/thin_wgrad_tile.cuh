// What the two kernels of wgrad share: the tile of the gradient in shared memory, and where sums go.
//
// The gradient lies in shared memory as it does in memory: NHWC a pixel's filters side by side, NCHW a
// filter's pixels (but for float32, which turns them); the pitch is an odd number of 16-byte vectors. Slots
// without a pixel, filters past the last hold zeros.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/grad_activation.cuh"
#include "conv2d/thin_box.cuh"

namespace fastcnn::thin {

template <class T>
struct WgradShared {
  SharedArray<T, kArena<T>> arena;  // the gradient, the box of x
  SharedArray<int, kThinWgradSlots>
      pixels;  // where a slot's pixel sees its first tap; of none, the inverse of a place
  SharedArray<int, kThinWgradWarps * kThinUnitOctets * 8> taps;
  SharedArray<float, kThinWgradWarps * kThinMostOutputs> box_sums;
};

// The image and first pixel of a tile.
struct WgradTile {
  int image, row, column;
};

__device__ inline WgradTile wgrad_tile(const ThinWgradParams& params, int tile) {
  int tile_h, tile_w;
  const int image = params.tiles_h.divide(params.tiles_w.divide(tile, tile_w), tile_h);
  return {image, tile_h * params.tile_h, tile_w * params.tile_w};
}

// The gradient past its activation. Not inlined: its copies would crowd the instruction cache and registers.
template <int V, class T>
[[gnu::noinline]] __device__ Vector<T, V> load_activated(const GradActivation& activation, const T* data,
                                                         int64_t offset) {
  return load_grad_if<V>(true, activation, data, offset);
}

template <int V, class T>
__device__ inline Vector<T, V> load_grad_item(bool predicate, const GradActivation& activation, const T* data,
                                              int64_t offset) {
  if (activation.saved == nullptr || !predicate) return load_global_if<V>(predicate, data + offset);
  return load_activated<V>(activation, data, offset);
}

// NCHW in float32: neighbouring threads bring neighbouring pixels, element by element, and turn them: a
// pixel's filters come to lie side by side. A thread stays with its pixel, groups of threads share filters.
template <class T>
__device__ inline void bring_grad_turned(SharedArray<T, kArena<T>>& arena, const ThinWgradParams& params,
                                         int slab, int image, int row, int column) {
  const T* const data = static_cast<const T*>(params.dy.data);
  const int threads = static_cast<int>(blockDim.x), groups = max(1, params.slot_div.divide(threads));
  int first_slot;
  const int group = params.slot_div.divide(static_cast<int>(threadIdx.x), first_slot);
  if (group >= groups) return;
  const int filters = params.filters - slab * params.block_filters;
#pragma unroll 1
  for (int slot = first_slot; slot < params.slots; slot += threads) {
    int w;
    const int h = params.tile_columns.divide(slot, w);
    const bool exists = h < params.tile_h && row + h < params.out_h && column + w < params.out_w;
    int64_t offset = image * params.dy.stride_n + (row + h) * params.dy.stride_h +
                     (column + w) * params.dy.stride_w +
                     (slab * params.block_filters + group) * params.dy.stride_c;
    const int at = slot * params.dy_pitch;
#pragma unroll 1
    for (int filter = group; filter < params.block_filters; filter += groups) {
      if (params.activation.saved == nullptr) {
        ptx::cp_async<4>(arena.address(at + filter), data + offset, exists && filter < filters);
      } else {
        arena.store(at + filter,
                    load_grad_item<1>(exists && filter < filters, params.activation, data, offset)[0]);
      }
      offset += groups * params.dy.stride_c;
    }
  }
}

template <class T, bool ChannelsLast>
__device__ inline void bring_grad(SharedArray<T, kArena<T>>& arena, const ThinWgradParams& params, int slab,
                                  int image, int row, int column) {
  constexpr int V = kVector<T>;
  const T* const data = static_cast<const T*>(params.dy.data);
  const bool copies = params.activation.saved == nullptr;
  const int first_filter = slab * params.block_filters;
  const int items = params.dy_vectors_div.divisor() * (ChannelsLast ? params.slots : params.block_filters);
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int vector;
    const int line = params.dy_vectors_div.divide(item, vector);
    const int slot = ChannelsLast ? line : vector * V;
    const int filter = first_filter + (ChannelsLast ? vector * V : line);
    int w;
    const int h = params.tile_columns.divide(slot, w);
    const bool exists =
        h < params.tile_h && row + h < params.out_h && column + w < params.out_w && filter < params.filters;
    const int64_t offset = image * params.dy.stride_n + filter * params.dy.stride_c +
                           (row + h) * params.dy.stride_h + (column + w) * params.dy.stride_w;
    const int at = line * params.dy_pitch + vector * V;
    const bool whole = ChannelsLast ? filter + V <= params.filters : column + w + V <= params.out_w;
    if (params.dy_vectors && (!exists || whole)) {
      if (copies) {
        ptx::cp_async<16>(arena.address(at), data + (exists ? offset : 0), exists);
      } else {
        arena.template store_vector<V>(at, load_grad_item<V>(exists, params.activation, data, offset));
      }
      continue;
    }
#pragma unroll 4
    for (int v = 0; v < V; ++v) {
      int slot_w;
      const int slot_h = params.tile_columns.divide(ChannelsLast ? slot : slot + v, slot_w);
      const int slot_filter = ChannelsLast ? filter + v : filter;
      const bool inside = slot_h < params.tile_h && row + slot_h < params.out_h &&
                          column + slot_w < params.out_w && slot_filter < params.filters;
      const int64_t element = image * params.dy.stride_n + slot_filter * params.dy.stride_c +
                              (row + slot_h) * params.dy.stride_h + (column + slot_w) * params.dy.stride_w;
      arena.store(at + v, load_grad_item<1>(inside, params.activation, data, element)[0]);
    }
  }
}

// Brings the gradient and the box of x, and writes the table of pixels.
template <class T, bool ChannelsLast>
__device__ inline void bring_wgrad_tile(WgradShared<T>& shared, const ThinWgradParams& params, int slab,
                                        int tile) {
  const auto [image, row, column] = wgrad_tile(params, tile);
  constexpr bool kTurned = !ChannelsLast && sizeof(T) == 4;
  if constexpr (kTurned) {
    bring_grad_turned(shared.arena, params, slab, image, row, column);
  } else {
    bring_grad<T, ChannelsLast>(shared.arena, params, slab, image, row, column);
  }
  const int box = (ChannelsLast || kTurned ? params.slots : params.block_filters) * params.dy_pitch;
  const int start = bring_box(shared.arena, box, params.x, image, params.first_h + row * params.step_h,
                              params.first_w + column * params.step_w);
  for (int slot = threadIdx.x; slot < params.slots; slot += blockDim.x) {
    int w;
    const int h = params.tile_columns.divide(slot, w);
    const bool exists = h < params.tile_h && row + h < params.out_h && column + w < params.out_w;
    const int pixel = start + h * params.step_h * params.x.row_pitch + w * params.step_w * params.x.pixel;
    shared.pixels.store(slot, exists ? pixel : ~start);
  }
}

// Where tap `tap` lies from a pixel's first.
__device__ inline int tap_offset(const ThinWgradParams& params, int tap) {
  int r, s;
  const int c = params.r_div.divide(params.s_div.divide(tap, s), r);
  return (params.x.planes > 1 ? c * params.x.plane_pitch : c) + r * params.tap_rows * params.x.row_pitch +
         s * params.tap_columns * params.x.pixel;
}

// Number `index` of the bias gradient.
template <class T>
__device__ inline void store_bias_sum(const ThinWgradParams& params, int split, void* bias_grad, int index,
                                      float sum) {
  if (params.partials != nullptr) {
    const int64_t weights = static_cast<int64_t>(params.filters) * params.taps;
    store_global(params.partials + split * params.split_sums + weights + index, sum);
  } else {
    store_global(static_cast<T*>(bias_grad) + index, from_accumulator<T>(sum));
  }
}

// Exchanged, x is multiplied by a zero where a tap lies beyond dy, and an infinity becomes NaN. Where some x
// is not finite whose tap lies there, the sum is taken anew, from global memory, over the others.
template <class T>
[[gnu::noinline]] __device__ float mended_sum(const ThinWgradParams& params, int split, int filter, int tap,
                                              float sum) {
  const ThinBox& box = params.x;
  int r, s;
  const int c = params.r_div.divide(params.s_div.divide(tap, s), r);
  const int first_tile = split * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  bool mends = false;
  float seen_sum = 0;
  for (const bool seen : {false, true}) {
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const auto [image, row, column] = wgrad_tile(params, tile);
#pragma unroll 1
      for (int slot = 0; slot < params.slots; ++slot) {
        int slot_w;
        const int h = row + params.tile_columns.divide(slot, slot_w), w = column + slot_w;
        if (h >= min(params.out_h, row + params.tile_h) || w >= params.out_w) continue;
        const int p = params.first_h + h + r * params.tap_rows;
        const int q = params.first_w + w + s * params.tap_columns;
        const bool inside = static_cast<unsigned>(p) < static_cast<unsigned>(box.image_h) &&
                            static_cast<unsigned>(q) < static_cast<unsigned>(box.image_w);
        if (inside != seen) continue;
        const int64_t x = image * params.dy.stride_n + filter * params.dy.stride_c + h * params.dy.stride_h +
                          w * params.dy.stride_w;
        const float value = to_accumulator(load_global(static_cast<const T*>(params.dy.data) + x));
        if (!seen) {
          mends = mends || value - value != 0;
          continue;
        }
        const int64_t dy =
            image * box.view.stride_n + c * box.view.stride_c + p * box.view.stride_h + q * box.view.stride_w;
        seen_sum += value * to_accumulator(load_grad_if<1>(true, params.box_activation,
                                                           static_cast<const T*>(box.view.data), dy)[0]);
      }
    }
    if (!mends) return sum;
  }
  return seen_sum;
}

// The sum of filter `filter` and tap `tap`; of those past the last it is dropped. Tap number `taps` is the
// bias gradient's. Not inlined: a warp has many.
template <class T>
[[gnu::noinline]] __device__ void store_sum(const ThinWgradParams& params, int split, int filter, int tap,
                                            float sum) {
  if (filter >= params.filters || tap > params.taps) return;
  if (tap == params.taps) {
    if (params.bias_grad != nullptr) store_bias_sum<T>(params, split, params.bias_grad, filter, sum);
    return;
  }
  if (params.exchanged && sum - sum != 0) sum = mended_sum<T>(params, split, filter, tap, sum);
  if (params.partials != nullptr) {
    store_global(
        params.partials + split * params.split_sums + static_cast<int64_t>(filter) * params.taps + tap, sum);
    return;
  }
  int r, s;
  const int c = params.r_div.divide(params.s_div.divide(tap, s), r);
  store_global(static_cast<T*>(params.output.data) + filter * params.output.stride_n +
                   c * params.output.stride_c + r * params.output.stride_h + s * params.output.stride_w,
               from_accumulator<T>(sum));
}

}  // namespace fastcnn::thin
