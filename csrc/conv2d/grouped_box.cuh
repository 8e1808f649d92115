// Brings a box of pixels, all channels of a slab, from global to shared memory.
//
// Walk: an item is one 16-byte vector of neighbouring channels in shared memory. It is loaded as one access
// where channels lie side by side and aligned, as two where only half as well aligned, else element by
// element; then neighbouring threads take neighbouring pixels where those lie closer than channels (NCHW), so
// that a warp's loads fall together. What needs no arithmetic is copied by cp.async: a whole box in flight.
// Channels past the tensor's last and pixels outside the image are zeros. The pitch is an odd number of
// 16-byte vectors: neighbouring pixels start in different banks.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/grouped.h"
#include "ptx/cp_async.cuh"

namespace fastcnn::grouped {

template <class T>
inline constexpr int kVector = 16 / sizeof(T);
template <class T>
inline constexpr int kArena = kGroupedArenaBytes / static_cast<int>(sizeof(T));

// The output gradient goes through its activation's backward; other tensors are taken as they are.
template <bool IsGrad, int V, class T>
__device__ inline Vector<T, V> load_box_if(bool predicate, const GroupedBox& box, const T* data,
                                           int64_t offset) {
  if constexpr (IsGrad) {
    return load_grad_if<V>(predicate, box.activation, data, offset);
  } else {
    return load_global_if<V>(predicate, data + offset);
  }
}

// One item: V channels from `channel` on, of which `left` (a multiple of 4) exist.
template <class T, bool IsGrad>
__device__ inline Vector<T, kVector<T>> load_item(const GroupedBox& box, const T* data, int64_t offset,
                                                  bool inside, int left) {
  constexpr int V = kVector<T>;
  if (box.access == V) return load_box_if<IsGrad, V>(inside && left > 0, box, data, offset);
  Vector<T, V> result;
  if (V > 4 && box.access == 4) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      const auto part = load_box_if<IsGrad, 4>(inside && v < left, box, data, offset + v);
#pragma unroll
      for (int u = 0; u < 4; ++u) result[v + u] = part[u];
    }
    return result;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    result[v] = load_box_if<IsGrad, 1>(inside && v < left, box, data, offset + v * box.view.stride_c)[0];
  }
  return result;
}

// first_image, first_row and first_column are those of the box in the tensor; rows may be negative.
template <bool IsGrad, class T, int N>
__device__ inline void bring_box(SharedArray<T, N>& arena, int arena_start, const GroupedBox& box, int slab,
                                 int first_image, int first_row, int first_column) {
  constexpr int V = kVector<T>;
  const int first_channel = slab * box.slab_channels;
  const int last_channel = min(first_channel + box.slab_channels, box.channels);
  const T* const data = static_cast<const T*>(box.view.data);
  const bool copies = box.access == V && (!IsGrad || box.activation.saved == nullptr);
  const int items = box.vectors.divisor() * box.pixels.divisor();
#pragma unroll 2
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int pixel, vector;
    if (box.channels_fast) {
      pixel = box.vectors.divide(item, vector);
    } else {
      vector = box.pixels.divide(item, pixel);
    }
    int row, column;
    const int image = box.row_count.divide(box.column_count.divide(pixel, column), row);
    const int channel = first_channel + vector * V;
    const int n = first_image + image;
    const int h = first_row + row * box.row_step;
    const int w = first_column + column * box.column_step;
    const bool inside = n < box.image_n && static_cast<unsigned>(h) < static_cast<unsigned>(box.image_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(box.image_w);
    const int64_t offset =
        n * box.view.stride_n + h * box.view.stride_h + w * box.view.stride_w + channel * box.view.stride_c;
    const int at = arena_start + pixel * box.pitch + vector * V;
    if (copies) {
      const bool exists = inside && channel < last_channel;
      ptx::cp_async<16>(arena.address(at), data + (exists ? offset : 0), exists);
    } else {
      arena.template store_vector<V>(at,
                                     load_item<T, IsGrad>(box, data, offset, inside, last_channel - channel));
    }
  }
  if (copies) {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
}

}  // namespace fastcnn::grouped
