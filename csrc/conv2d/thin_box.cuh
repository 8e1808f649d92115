// Brings a box of x to shared memory as it lies in memory, and lists where the taps lie in it.
//
// Walk: an item is one 16-byte vector of shared memory, neighbouring threads take neighbouring ones of a row.
// As pitches are congruent to strides, it is one aligned 16-byte vector of the image, too, whatever the width
// of the image and of the padding: copied by cp.async where all of it is in the image's row, zeros where none
// is, and put together from elements at the ends of the image's rows and where rows are not dense.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/thin.h"
#include "ptx/cp_async.cuh"

namespace fastcnn::thin {

template <class T>
inline constexpr int kVector = 16 / sizeof(T);
template <class T>
inline constexpr int kArena = kThinArenaBytes / static_cast<int>(sizeof(T));

// Begins to bring `planes` planes of an image that starts at `data`: its copies land at the caller's wait.
// Gives the index in the arena of the box's first element. `arena_start` is a multiple of the vector;
// first_row and first_column, those of the box in the image, may be negative.
template <class T, int N>
__device__ inline int copy_box(SharedArray<T, N>& arena, int arena_start, const ThinBox& box, const T* data,
                               int planes, int first_row, int first_column) {
  constexpr int V = kVector<T>;
  const int64_t origin = first_row * box.view.stride_h + static_cast<int64_t>(first_column) * box.pixel;
  int start = arena_start;
  if (box.dense) {
    const int64_t address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) / sizeof(T)) + origin;
    start += static_cast<int>(address & (V - 1));
  }
  const int length = box.columns * box.pixel;
  const int first_element = first_column * box.pixel;
  const int image_elements = box.image_w * box.pixel;
  const int items = planes * box.rows * box.vectors.divisor();
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int vector, row;
    const int plane = box.row_count.divide(box.vectors.divide(item, vector), row);
    const int at = start + plane * box.plane_pitch + row * box.row_pitch;
    const int first = vector * V - at % V;  // of the vector, counted in the box's row
    if (first >= length) continue;
    const int h = first_row + row;
    const bool row_exists = static_cast<unsigned>(h) < static_cast<unsigned>(box.image_h);
    const int element = first_element + first;
    if (box.dense && row_exists && element >= 0 && element + V <= image_elements) {
      ptx::cp_async<16>(arena.address(at + first),
                        data + plane * box.view.stride_c + h * box.view.stride_h + element);
      continue;
    }
    Vector<T, V> values;
    const bool any = row_exists && element + V > 0 && element < image_elements;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      int inner;
      const int column = box.pixel_div.divide(max(first + v, 0), inner);
      const int w = first_column + column;
      const bool inside = any && first + v >= 0 && first + v < length &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(box.image_w);
      values[v] = load_global_if(
          inside, data + (plane + inner) * box.view.stride_c + h * box.view.stride_h + w * box.view.stride_w);
    }
    arena.template store_vector<V>(at + first, values);
  }
  return start;
}

// The whole box, there at the caller's barrier.
template <class T, int N>
__device__ inline int bring_box(SharedArray<T, N>& arena, int arena_start, const ThinBox& box, int image,
                                int first_row, int first_column) {
  const T* const data = static_cast<const T*>(box.view.data) + image * box.view.stride_n;
  const int start = copy_box(arena, arena_start, box, data, box.planes, first_row, first_column);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  return start;
}

// Where the element of reduction index `index` lies from a pixel's first in the box; padding says so.
struct TapElement {
  int offset;
  bool exists;
};

__device__ inline TapElement tap_element(const ThinBox& box, const ThinTaps& taps, int index) {
  int in_run;
  const int run = taps.run_pitch_div.divide(index, in_run);
  const int j = in_run - taps.lead;
  int r, inner;
  const int plane = taps.r_div.divide(run, r);
  const int s = taps.pixel_div.divide(max(j, 0), inner);
  return {
      plane * box.plane_pitch + r * taps.row_step * box.row_pitch + s * taps.column_step * box.pixel + inner,
      run < taps.runs && j >= 0 && j < taps.run_length};
}

// The reduction index of a tap.
__device__ inline int reduction_index(const ThinBox& box, const ThinTaps& taps, int c, int r, int s) {
  const bool planar = box.planes > 1;
  const int run = planar ? c * taps.r + r : r;
  return run * taps.run_pitch + taps.lead + (planar ? s : s * box.pixel + c);
}

}  // namespace fastcnn::thin
