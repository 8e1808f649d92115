// Max and average pooling over strips, NHWC, K x K windows at stride S (strip.cuh).
//
// Tile: block_rows x block_columns outputs of `lanes` vectors of channels. A thread reduces the K taps of its
// window's rows from shared memory, one input row after the other, keeps the last K - S row results in
// registers and writes 16 bytes of y (and 4 or 8 offsets) per output.
// Floor, bytes per output and channel at e bytes an element: e * H * W / (P * Q) read, e + 1 written (3x3/2:
// 5 e + 1; 3x3/1: 2 e + 1). Read beyond it: the K - S rows and columns at which strips and column tiles meet.
// Arithmetic per output and channel: S * K conversions, S * (K - 1) + K - 1 comparisons or additions: 6 + 6
// for 3x3/2, 3 + 4 for 3x3/1, against 9 + 8 of the general kernel; maxima of 16-bit types need no conversion
// and go two channels at a time. Memory bound.
// Registers (ptxas, sm_90a): 62 to 72, three blocks an SM; maxima at S = 1 78 to 92, two.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "pool2d/divisor.cuh"
#include "pool2d/rolling.cuh"
#include "pool2d/strip.cuh"

namespace fastcnn {

template <class T, int S>
using StripFpropRing = RowRing<T, 16 / sizeof(T), strip_fprop_row_vectors(S)>;

template <class T, int S>
struct StripFpropShared {
  typename StripFpropRing<T, S>::Array rows;
};
static_assert(sizeof(StripFpropShared<float, 2>) == strip_fprop_bytes(2));

template <class T, bool kMax, int K, int S>
__global__ void __launch_bounds__(kStripThreads, kMax&& S == 1 ? 2 : 3)
    strip_fprop(const __grid_constant__ StripParams params) {
  using Acc = accumulator_t<T>;
  constexpr int V = 16 / sizeof(T);
  using Part = typename PartOf<kMax, T, V>::type;
  auto& shared = shared_memory<StripFpropShared<T, S>>();

  const int height = params.rows.input();
  const int width = params.columns.input();
  const int pad_h = params.rows.pad();
  const int pad_w = params.columns.pad();
  const StripPlace place(params, params.rows.output(), params.columns.output());
  const int w_first = max(place.column * S - pad_w, 0);
  StripFpropRing<T, S> ring(shared.rows, params, params.input, params.input_phase, place,
                            max(place.row * S - pad_h, 0), min((place.row_end - 1) * S - pad_h + K, height),
                            w_first, min((place.column_end - 1) * S - pad_w + K, width));
#pragma unroll
  for (int i = 0; i < kStripRingRows - 1; ++i) {
    ring.issue();
    ptx::cp_async_commit();
  }

  const int q = place.my_column;
  const int left = q * S - pad_w;
  const int first = max(-left, 0);
  const int last = place.active ? min(K, width - left) : 0;
  const int corner = (left - w_first) * params.lanes + place.my_lane;
  int row = 0;

  roll_down<Part, K, S>(
      place.row, place.row_end, pad_h, height, first,
      [&](int, Part& part) {
        ptx::cp_async_wait<kStripRingRows - 2>();
        __syncthreads();
        ring.issue();
        ptx::cp_async_commit();
#pragma unroll
        for (int s = 0; s < K; ++s) {
          if (s < first || s >= last) continue;
          part.take(ring.read(row, corner + s * params.lanes), s);
        }
        ++row;
      },
      [&](int p, Part& window) {
        if (!place.active) return;
        const int64_t channel = static_cast<int64_t>(place.vector + place.my_lane) * V;
        const auto at = [&](const TensorView& view, const StripPhase& phase) {
          return place.image(view, phase) + channel + p * view.stride_h + q * view.stride_w;
        };
        if constexpr (!kMax) {
          window.divide(params.common_divisor != 0 ? params.common_divisor : divisor<Acc>(params, p, q));
        }
        store_global<V>(static_cast<T*>(params.output.data) + at(params.output, params.output_phase),
                        window.template rounded<T>());
        if constexpr (kMax) {
          if (params.index == Pool2dIndex::kUint8Offset) {
            store_global<V>(
                static_cast<uint8_t*>(params.indices.data) + at(params.indices, params.indices_phase),
                window.tap_bytes());
          }
        }
      });
}

}  // namespace fastcnn
