// Max and average pooling of windows side by side, NHWC: K x K at stride K, and adaptive averages that come
// to the same. What windows share is nothing, so no shared memory.
//
// Tile: one thread holds 16 bytes of channels of one window; neighbouring threads hold neighbouring channels,
// then neighbouring windows of a row. Fprop issues its K * K loads before it uses the first, and writes 16
// bytes of y (and 4 or 8 of offsets). Bprop reads dy and the offsets of its window once and writes K * K
// times 16 bytes; the rows and columns that the last window leaves over are windows without a gradient.
//
// Floor, bytes per window and channel at e bytes an element: (K * K + 1) * e and 1 for the offset, either
// way. Nothing is read beyond it. Arithmetic per element: two comparisons and two selections, or for 16-bit
// types half as many (fprop); a comparison and a selection (bprop). Memory bound.
// Why so: places in an image are counted in 32 bits from the image's first element, so a thread divides
// thrice and multiplies 64 bits once for each tensor.
// Registers (ptxas, sm_90a): fprop 32 to 38, bprop 27 to 53.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/tensor_view.h"
#include "pool2d/axis.cuh"
#include "pool2d/divisor.cuh"
#include "pool2d/plan.h"
#include "pool2d/problem.h"
#include "pool2d/rolling.cuh"

namespace fastcnn {

struct WindowParams {
  TensorView input;
  TensorView indices;
  TensorView output;
  PoolAxis rows;
  PoolAxis columns;
  Pool2dIndex index = Pool2dIndex::kNone;
  int items = 0;
  FastDiv by_vectors;  // of channels
  FastDiv by_columns;  // windows of a row, in bprop those without a gradient too
  FastDiv by_rows;
  // Averages only.
  float common_divisor = 0;  // 0: windows differ
  int64_t divisor_override = 0;
  bool count_include_pad = true;
  bool adaptive = false;
};

// A thread's window, and where its channels lie in the images.
struct WindowPlace {
  int n, p, q, c;

  template <int V>
  static __device__ WindowPlace of(const WindowParams& params, int item) {
    WindowPlace at;
    item = params.by_vectors.divide(item, at.c);
    item = params.by_columns.divide(item, at.q);
    at.n = params.by_rows.divide(item, at.p);
    at.c *= V;
    return at;
  }
  template <class T>
  __device__ T* image(const TensorView& view) const {
    return static_cast<T*>(view.data) + n * view.stride_n + c;
  }
};

// From the image's first element.
__device__ inline int window_offset(const TensorView& view, int y, int x) {
  return y * static_cast<int>(view.stride_h) + x * static_cast<int>(view.stride_w);
}

template <class T, bool kMax, int K>
__global__ void __launch_bounds__(kPoolThreads, 4) window_fprop(const __grid_constant__ WindowParams params) {
  using Acc = accumulator_t<T>;
  constexpr int V = 16 / sizeof(T);
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (item >= params.items) return;
  const WindowPlace at = WindowPlace::of<V>(params, item);
  const int top = at.p * K - params.rows.pad();
  const int left = at.q * K - params.columns.pad();
  const T* from = at.template image<const T>(params.input);

  Vector<T, V> x[K][K];
  bool held[K][K];
#pragma unroll
  for (int r = 0; r < K; ++r) {
#pragma unroll
    for (int s = 0; s < K; ++s) {
      const int h = top + r;
      const int w = left + s;
      held[r][s] = h >= 0 && h < params.rows.input() && w >= 0 && w < params.columns.input();
      x[r][s] = load_global_if<V>(held[r][s], from + window_offset(params.input, h, w));
    }
  }
  typename PartOf<kMax, T, V>::type window;
  window.clear(max(-top, 0) * K + max(-left, 0));
#pragma unroll
  for (int r = 0; r < K; ++r) {
#pragma unroll
    for (int s = 0; s < K; ++s) {
      if (kMax && !held[r][s]) continue;  // a sum takes the zeros
      window.take(x[r][s], r * K + s);
    }
  }
  if constexpr (!kMax) {
    window.divide(params.common_divisor != 0 ? params.common_divisor : divisor<Acc>(params, at.p, at.q));
  }
  store_global<V>(at.template image<T>(params.output) + window_offset(params.output, at.p, at.q),
                  window.template rounded<T>());
  if constexpr (kMax) {
    if (params.index != Pool2dIndex::kUint8Offset) return;
    store_global<V>(at.template image<uint8_t>(params.indices) + window_offset(params.indices, at.p, at.q),
                    window.tap_bytes());
  }
}

template <class T, bool kMax, int K>
__global__ void __launch_bounds__(kPoolThreads, 4) window_bprop(const __grid_constant__ WindowParams params) {
  using Acc = accumulator_t<T>;
  constexpr int V = 16 / sizeof(T);
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (item >= params.items) return;
  const WindowPlace at = WindowPlace::of<V>(params, item);
  const int top = at.p * K - params.rows.pad();
  const int left = at.q * K - params.columns.pad();
  const bool real = at.p < params.rows.output() && at.q < params.columns.output();

  Vector<T, V> dy = load_global_if<V>(
      real, at.template image<const T>(params.input) + window_offset(params.input, at.p, at.q));
  Vector<uint8_t, V> taps;
  if constexpr (kMax) {
    taps = load_global_if<V>(
        real, at.template image<const uint8_t>(params.indices) + window_offset(params.indices, at.p, at.q));
  } else if (real) {
    const Acc count = params.common_divisor != 0 ? params.common_divisor : divisor<Acc>(params, at.p, at.q);
#pragma unroll
    for (int i = 0; i < V; ++i) dy[i] = from_accumulator<T>(to_accumulator(dy[i]) / count);
  }
  T* to = at.template image<T>(params.output);
#pragma unroll
  for (int r = 0; r < K; ++r) {
#pragma unroll
    for (int s = 0; s < K; ++s) {
      const int h = top + r;
      const int w = left + s;
      const bool held = h >= 0 && h < params.rows.input() && w >= 0 && w < params.columns.input();
      Vector<T, V> dx = dy;
      if constexpr (kMax) {
#pragma unroll
        for (int i = 0; i < V; ++i) dx[i] = taps[i] == r * K + s ? dy[i] : from_accumulator<T>(Acc(0));
      }
      store_global_if<V>(held, to + window_offset(params.output, h, w), dx);
    }
  }
}

}  // namespace fastcnn
