// Cells of the depthwise kernels for many taps: 2 x 8 sums of one plane in a thread's registers, to which
// rows of sources and of taps in shared memory are added. Eight taps of a row are 128 FMAs for two 16-byte
// loads of sources and four of taps.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_image.h"

namespace fastcnn {

// Eight neighbouring floats, 16-byte aligned.
template <int kFloats>
__device__ inline void load_eight(const SharedArray<float, kFloats>& floats, int at, float (&value)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Vector<float, 4> loaded = floats.template load_vector<4>(at + 4 * half);
#pragma unroll
    for (int i = 0; i < 4; ++i) value[4 * half + i] = loaded[i];
  }
}

// Adds what a source row gives to a cell of which it concerns the first row (kFirst), the second or both.
// w_at: the first row's taps; the second row's lie one row of taps before them.
template <bool kFirst, bool kSecond, int kFloats>
__device__ inline void add_source_row(const SharedArray<float, kFloats>& floats, int x_at, int w_at,
                                      int weight_pitch, int taps,
                                      float (&sum)[kDepthwiseCellRows][kDepthwiseCellColumns]) {
  static_assert(kDepthwiseCellColumns == 8 && kDepthwiseCellRows == 2, "written for these");
  float low[8], high[8];
  load_eight(floats, x_at, low);
  const auto add = [&](int left) {
    load_eight(floats, x_at + 8, high);
    float w[2][8];
    if constexpr (kFirst) load_eight(floats, w_at, w[0]);
    if constexpr (kSecond) load_eight(floats, w_at - weight_pitch, w[1]);
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      if (s >= left) break;
#pragma unroll
      for (int i = kFirst ? 0 : 1; i < (kSecond ? 2 : 1); ++i) {
#pragma unroll
        for (int u = 0; u < 8; ++u) sum[i][u] += (s + u < 8 ? low[s + u] : high[s + u - 8]) * w[i][s];
      }
    }
  };
  // Twice, so that the registers of low and high change places without moves.
#pragma unroll 2
  for (; taps >= 8; taps -= 8) {
    add(8);
#pragma unroll
    for (int u = 0; u < 8; ++u) low[u] = high[u];
    x_at += 8;
    w_at += 8;
  }
  if (taps > 0) add(taps);
}

// Adds source rows begin to end - 1 to a cell, of which row 0 lies at x_at under the first tap row of the
// cell's first row, at w_at. Row j is under tap row j of the first row and under row j - 1 of the second.
template <int kFloats>
__device__ inline void add_to_cell(const SharedArray<float, kFloats>& floats, int x_at, int pitch, int w_at,
                                   int weight_pitch, int begin, int end, int rows, int taps,
                                   float (&sum)[kDepthwiseCellRows][kDepthwiseCellColumns]) {
  x_at += begin * pitch;
  w_at += begin * weight_pitch;
  for (int j = begin; j < end; ++j, x_at += pitch, w_at += weight_pitch) {
    if (j == 0) {
      add_source_row<true, false>(floats, x_at, w_at, weight_pitch, taps, sum);
    } else if (j == rows) {
      add_source_row<false, true>(floats, x_at, w_at, weight_pitch, taps, sum);
    } else {
      add_source_row<true, true>(floats, x_at, w_at, weight_pitch, taps, sum);
    }
  }
}

}  // namespace fastcnn
