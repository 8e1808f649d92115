// The gradient of max and average pooling over strips, NHWC, K x K windows at stride S (strip.cuh).
//
// Tile: block_rows x block_columns inputs of `lanes` vectors of channels. A thread holds the sums of the K
// input rows that the current row of windows reaches: it adds to them from the windows of that row which
// cover its column (at most K / S, rounded up), writes the S rows that are done, 16 bytes each, and moves on.
// dy and offsets stream through shared memory, each read once (16 bytes, and 4 or 8); no atomics, windows in
// row-major order.
// Floor, bytes per input and channel: e written, (e + 1) * P * Q / (H * W) read (3x3/2: 1.25 e + 0.25; 3x3/1:
// 2 e + 1); averages have no offsets. Read beyond it: the windows that two strips or column tiles share.
// Arithmetic per covering window and channel: one conversion, and K comparisons with predicated additions;
// or, of averages, one addition, and K for all of them: 3x3/2 on average 1.5 windows per two rows, 3x3/1 3
// windows per row. Memory bound.
// Registers (ptxas, sm_90a): maxima 62 to 72, three blocks an SM; averages 93 to 118, two.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "pool2d/divisor.cuh"
#include "pool2d/rolling.cuh"
#include "pool2d/strip.cuh"

namespace fastcnn {

template <class T, bool kMax>
struct StripBpropShared;
template <class T>
struct StripBpropShared<T, true> {
  typename RowRing<T, 16 / sizeof(T), kStripBpropRowVectors>::Array rows;
  typename RowRing<uint8_t, 16 / sizeof(T), kStripBpropRowVectors>::Array offsets;
};
template <class T>
struct StripBpropShared<T, false> {
  typename RowRing<T, 16 / sizeof(T), kStripBpropRowVectors>::Array rows;
};
static_assert(sizeof(StripBpropShared<float, true>) == strip_bprop_bytes(4, true));
static_assert(sizeof(StripBpropShared<__half, false>) == strip_bprop_bytes(2, false));

template <class T, bool kMax, int K, int S>
__global__ void __launch_bounds__(kStripThreads, kMax ? 3 : 2)
    strip_bprop(const __grid_constant__ StripParams params) {
  using Acc = accumulator_t<T>;
  constexpr int V = 16 / sizeof(T);
  auto& shared = shared_memory<StripBpropShared<T, kMax>>();

  const int pad_h = params.rows.pad();
  const int pad_w = params.columns.pad();
  const StripPlace place(params, params.rows.input(), params.columns.input());
  const int p_first = params.rows.covering(place.row).begin;
  const int p_end = params.rows.covering(place.row_end - 1).end;
  const int q_first = params.columns.covering(place.column).begin;
  const int q_end = params.columns.covering(place.column_end - 1).end;
  RowRing<T, V, kStripBpropRowVectors> grads(shared.rows, params, params.input, params.input_phase, place,
                                             p_first, p_end, q_first, q_end);
  auto taps = [&] {
    if constexpr (kMax) {
      return RowRing<uint8_t, V, kStripBpropRowVectors>(shared.offsets, params, params.indices,
                                                        params.indices_phase, place, p_first, p_end, q_first,
                                                        q_end);
    } else {
      return 0;
    }
  }();
  const auto issue = [&] {
    grads.issue();
    if constexpr (kMax) taps.issue();
    ptx::cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < kStripRingRows - 1; ++i) issue();

  const int w = place.my_column;
  const PoolWindows mine = params.columns.covering(place.active ? w : place.column);
  const int64_t channel = static_cast<int64_t>(place.vector + place.my_lane) * V;
  T* output = static_cast<T*>(params.output.data) + place.image(params.output, params.output_phase) +
              channel + w * params.output.stride_w;

  roll_back<Acc, V, K, S>(
      p_first, params.rows.output(), place.row, place.row_end, pad_h,
      [&](int p, Acc(&sums)[K][V]) {
        ptx::cp_async_wait<kStripRingRows - 2>();
        __syncthreads();
        issue();
        Acc row_sum[V] = {};
#pragma unroll
        for (int j = 0; j < (K + S - 1) / S; ++j) {
          const int q = mine.begin + j;
          if (!place.active || q >= mine.end) continue;
          const int vector = (q - q_first) * params.lanes + place.my_lane;
          const Vector<T, V> dy = grads.read(p - p_first, vector);
          if constexpr (kMax) {
            const Vector<uint8_t, V> tap = taps.read(p - p_first, vector);
            const int column_tap = w + pad_w - q * S;
#pragma unroll
            for (int i = 0; i < V; ++i) {
#pragma unroll
              for (int r = 0; r < K; ++r) {
                if (tap[i] == column_tap + r * K) sums[r][i] += to_accumulator(dy[i]);
              }
            }
          } else {
            const Acc count = params.common_divisor != 0 ? Acc(1) : divisor<Acc>(params, p, q);
            if (count == Acc(1)) {
#pragma unroll
              for (int i = 0; i < V; ++i) row_sum[i] += to_accumulator(dy[i]);
            } else {
#pragma unroll
              for (int i = 0; i < V; ++i) row_sum[i] += to_accumulator(dy[i]) / count;
            }
          }
        }
        if constexpr (!kMax) {
#pragma unroll
          for (int i = 0; i < V; ++i) {
            if (params.common_divisor != 0) row_sum[i] /= params.common_divisor;
#pragma unroll
            for (int r = 0; r < K; ++r) sums[r][i] += row_sum[i];
          }
        }
      },
      [&](int h, const Acc(&sums)[V]) {
        if (!place.active) return;
        Vector<T, V> dx;
#pragma unroll
        for (int i = 0; i < V; ++i) dx[i] = from_accumulator<T>(sums[i]);
        store_global<V>(output + h * params.output.stride_h, dx);
      });
}

}  // namespace fastcnn
