// The gradient of max and average pooling of tiles, NCHW (tile.cuh): K x K windows at stride S, or any
// windows (K = 0).
//
// Tile: up to 16 KB of dx. dy and offsets of the windows that cover it come in 16-byte accesses, each once; a
// thread walks down segment_rows inputs of one column and gathers from the covering windows: with K known it
// holds the sums of K rows in registers and reads every window that covers its column once (rolling.cuh).
// No atomics; windows in row-major order.
// Floor, bytes per input: e written, (e + 1) * P * Q / (H * W) read. Read beyond it: the window rows that two
// strips share, and up to 60 bytes a tile that belong to its neighbours.
// Arithmetic per input, K known: at most K / S (rounded up) shared loads of dy and offset for S inputs, K
// comparisons with predicated additions each. Memory bound.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "pool2d/divisor.cuh"
#include "pool2d/rolling.cuh"
#include "pool2d/tile.cuh"

namespace fastcnn {

template <class T, bool kMax, int K, int S>
__global__ void __launch_bounds__(kTileThreads, 4) tile_bprop(const __grid_constant__ TileParams params) {
  using Acc = accumulator_t<T>;
  auto& shared = shared_memory<TileShared<T, K, S, kMax>>();

  const int width = params.columns.input();
  const int outputs = params.columns.output();
  const TilePlace place(params, params.rows.input());
  int p_first = 0;
  int p_end = params.rows.output();
  if (K > 0 && params.block_planes == 1) {
    p_end = params.rows.covering(place.row_end - 1).end;
    p_first = min(params.rows.covering(place.row).begin, p_end);
  }
  const int64_t large_plane = static_cast<int64_t>(params.rows.input()) * width;
  const int64_t small_plane = static_cast<int64_t>(params.rows.output()) * outputs;
  const int64_t large_begin = place.plane * large_plane + static_cast<int64_t>(place.row) * width;
  const int64_t small_begin = place.plane * small_plane + static_cast<int64_t>(p_first) * outputs;
  const int large_step = (place.row_end - place.row) * width;  // from plane to plane in the tile
  const int small_step = (p_end - p_first) * outputs;
  const int64_t small_end = small_begin + static_cast<int64_t>(place.planes) * small_step;

  const TileSmall<T, K, S> dy(shared.small, small_begin, small_end);
  const TileOffsets<T, K, S, kMax> offsets(shared.offsets, small_begin, small_end);
  dy.fetch(params.input.data, params.planes * small_plane);
  if constexpr (kMax) offsets.fetch(params.indices.data, params.planes * small_plane);
  ptx::cp_async_commit();
  const TileLarge<T> dx(shared.large, large_begin,
                        large_begin + static_cast<int64_t>(place.planes) * large_step);
  ptx::cp_async_wait<0>();
  __syncthreads();

  const int items = TileItem::count(params, place);
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    const TileItem mine(params, place, item);
    const int w = mine.column;
    const int plane = mine.plane * small_step;
    const PoolWindows covering = params.columns.covering(w);
    const auto finish = [&](int h, Acc sum) {
      dx.store(mine.plane * large_step + (h - place.row) * width + w, from_accumulator<T>(sum));
    };
    if constexpr (K > 0) {
      const int p_mine = params.rows.covering(mine.row).begin;
      roll_back<Acc, 1, K, S>(
          p_mine, params.rows.output(), mine.row, mine.row_end, params.rows.pad(),
          [&](int p, Acc(&sums)[K][1]) {
            const int corner = plane + (p - p_first) * outputs + covering.begin;
            Acc row_sum = 0;
#pragma unroll
            for (int j = 0; j < (K + S - 1) / S; ++j) {
              const int q = covering.begin + j;
              if (q >= covering.end) continue;
              const Acc grad = to_accumulator(dy.load(corner + j));
              if constexpr (kMax) {
                const int row_start = offsets.load(corner + j) - (w + params.columns.pad() - q * S);
#pragma unroll
                for (int r = 0; r < K; ++r) {
                  if (row_start == r * K) sums[r][0] += grad;
                }
              } else {
                row_sum += params.common_divisor != 0 ? grad : grad / divisor<Acc>(params, p, q);
              }
            }
            if constexpr (!kMax) {
              if (params.common_divisor != 0) row_sum /= params.common_divisor;
#pragma unroll
              for (int r = 0; r < K; ++r) sums[r][0] += row_sum;
            }
          },
          [&](int h, const Acc(&sums)[1]) { finish(h, sums[0]); });
    } else {
      for (int h = mine.row; h < mine.row_end; ++h) {
        const PoolWindows rows = params.rows.covering(h);
        Acc sum = 0;
        for (int p = rows.begin; p < rows.end; ++p) {
          const int row_tap = params.rows.tap(p, h);
          if (row_tap < 0) continue;
          const int row = plane + (p - p_first) * outputs;
          for (int q = covering.begin; q < covering.end; ++q) {
            const Acc grad = to_accumulator(dy.load(row + q));
            if constexpr (kMax) {
              const int column_tap = params.columns.tap(q, w);
              const int wanted = row_tap * params.columns.kernel() + column_tap;
              if (column_tap >= 0 && offsets.load(row + q) == wanted) sum += grad;
            } else {
              const Acc count =
                  params.common_divisor != 0 ? params.common_divisor : divisor<Acc>(params, p, q);
              sum += grad / count;
            }
          }
        }
        finish(h, sum);
      }
    }
  }
  __syncthreads();
  dx.flush(params.output.data);
}

}  // namespace fastcnn
