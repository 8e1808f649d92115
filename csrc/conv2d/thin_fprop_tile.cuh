// What the two kernels of fprop share: where tiles lie, the weights' way to shared memory, the epilogue.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/epilogue.cuh"
#include "conv2d/thin_box.cuh"

namespace fastcnn::thin {

// The image and the first pixel of a tile.
struct TilePosition {
  int image, row, column;
};

__device__ inline TilePosition tile_at(const ThinFpropParams& params, int tile) {
  int h, w;
  const int image = params.tiles_h.divide(params.tiles_w.divide(tile, w), h);
  return {image, h * params.tile_h, w * params.tile_w};
}

template <class T>
__device__ inline int bring_tile_box(SharedArray<T, kArena<T>>& arena, int arena_start,
                                     const ThinFpropParams& params, const TilePosition& at) {
  return bring_box(arena, arena_start, params.x, at.image, params.first_h + at.row * params.step_h,
                   params.first_w + at.column * params.step_w);
}

// Where each pixel of a tile sees its first tap. Slots past the tile's pixels see any; their sums are
// dropped.
__device__ inline void write_seen(SharedArray<int, kThinSlots>& seen, const ThinFpropParams& params,
                                  int slots) {
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    int w;
    const int h = params.tile_columns.divide(slot, w);
    const bool exists = h < params.tile_h;
    seen.store(slot,
               exists ? h * params.step_h * params.x.row_pitch + w * params.step_w * params.x.pixel : 0);
  }
}

// The weights of the block's filters, E neighbours in memory at a time.
template <int E, class T, class Place>
__device__ inline void bring_weight_runs(SharedArray<T, kArena<T>>& arena, const ThinFpropParams& params,
                                         int first_filter, int filters, const Place& place) {
  const int size = params.weight_filter.divisor();
  const T* const data = static_cast<const T*>(params.weight.data) + first_filter * params.weight.stride_n;
#pragma unroll 2
  for (int index = threadIdx.x * E; index < filters * size; index += blockDim.x * E) {
    int in_filter, c, r, s;
    int filter = params.weight_filter.divide(index, in_filter);
    if (params.weight_channels_inner) {
      r = params.weight_s.divide(params.weight_c.divide(in_filter, c), s);
    } else {
      c = params.weight_r.divide(params.weight_s.divide(in_filter, s), r);
    }
    Vector<T, E> values;
    if (E > 1 && index + E <= filters * size) {
      values = load_global<E>(data + index);
    } else {
#pragma unroll
      for (int e = 0; e < E; ++e)
        values[e] =
            load_global_if(E == 1 || index + e < filters * size,
                           data + (E > 1 ? index + e
                                         : filter * params.weight.stride_n + c * params.weight.stride_c +
                                               r * params.weight.stride_h + s * params.weight.stride_w));
    }
#pragma unroll
    for (int e = 0; e < E; ++e) {
      if (index + e < filters * size) {
        const int k = reduction_index(params.x, params.taps, c, r, s);
        arena.store(place(filter, k), values[e]);
      }
      // The next element in memory.
      if (params.weight_channels_inner) {
        if (++c < params.taps.channels) continue;
        c = 0;
        if (++s < params.taps.s) continue;
        s = 0;
        if (++r < params.taps.r) continue;
        r = 0;
      } else {
        if (++s < params.taps.s) continue;
        s = 0;
        if (++r < params.taps.r) continue;
        r = 0;
        if (++c < params.taps.channels) continue;
        c = 0;
      }
      ++filter;
    }
  }
}

// place(filter of the block, reduction index) says where a weight goes; the rest must hold zeros before.
template <class T, class Place>
__device__ inline void bring_weights(SharedArray<T, kArena<T>>& arena, const ThinFpropParams& params,
                                     int first_filter, int filters, const Place& place) {
  if (params.weight_dense) {
    bring_weight_runs<kVector<T>>(arena, params, first_filter, filters, place);
  } else {
    bring_weight_runs<1>(arena, params, first_filter, filters, place);
  }
}

// Finishes and stores V neighbours of the output, `step` elements apart, of which `left` exist. Not inlined:
// the epilogue is unrolled over a warp's (a thread's) sums, and its copies would
// not fit the instruction cache.
template <class T, int V>
[[gnu::noinline]] __device__ void store_row(const ThinFpropParams& params, Vector<float, V> row,
                                            Vector<float, V> bias, int64_t offset, int64_t step, int left) {
  T* const out = static_cast<T*>(params.output.data);
  if (params.vector_store && left >= V) {
    store_global<V>(out + offset, finish<T>(params.epilogue, row.value, bias.value, offset));
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v >= left) return;
    const float sum[1] = {row[v]}, one_bias[1] = {bias[v]};
    store_global<1>(out + offset + v * step, finish<T>(params.epilogue, sum, one_bias, offset + v * step));
  }
}

}  // namespace fastcnn::thin
