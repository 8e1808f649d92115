// Max and average pooling of tiles, NCHW (tile.cuh): K x K windows at stride S, or any windows (K = 0),
// adaptive and dilated ones too.
//
// Tile: up to 16 KB of input. A thread walks down segment_rows outputs of one column; with K known it keeps
// the last K - S row results in registers (rolling.cuh). Else maxima of every row along its columns come
// first, through shared memory, and averages visit every tap of every window.
// Floor, bytes per output at e bytes an element: e * H * W / (P * Q) read, e + 1 written. Read beyond it: the
// K - S rows at which strips of a plane meet, and up to 30 bytes a tile that belong to its neighbours.
// Arithmetic per output, K known: S * K shared loads and conversions, S * (K - 1) + K - 1 comparisons (2x2/2:
// 4 + 3, 3x3/2: 6 + 6, 3x3/1: 3 + 4); K = 0: about 2 k of each for k x k maxima, k * k for averages. One
// segment's start repeats K - S rows from shared memory. Memory bound; blocks are small, so that others load
// while one computes.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "pool2d/divisor.cuh"
#include "pool2d/rolling.cuh"
#include "pool2d/tile.cuh"

namespace fastcnn {

template <class T, bool kMax, int K, int S>
__global__ void __launch_bounds__(kTileThreads, 4) tile_fprop(const __grid_constant__ TileParams params) {
  using Acc = accumulator_t<T>;
  using Part = typename PartOf<kMax, T, 1>::type;
  auto& shared = shared_memory<TileFpropShared<T, K, S, kMax>>();

  const int height = params.rows.input();
  const int width = params.columns.input();
  const int outputs = params.columns.output();
  const TilePlace place(params, params.rows.output());
  int h_first = 0;
  int h_end = height;
  // Planes that come together come whole, rows that no window holds included.
  if (K > 0 && params.block_planes == 1) {
    h_first = max(place.row * S - params.rows.pad(), 0);
    h_end = min((place.row_end - 1) * S - params.rows.pad() + K, height);
  }
  const int64_t large_plane = static_cast<int64_t>(height) * width;
  const int64_t small_plane = static_cast<int64_t>(params.rows.output()) * outputs;
  const int64_t large_begin = place.plane * large_plane + static_cast<int64_t>(h_first) * width;
  const int64_t small_begin = place.plane * small_plane + static_cast<int64_t>(place.row) * outputs;
  const int large_step = (h_end - h_first) * width;  // from plane to plane in the tile
  const int small_step = (place.row_end - place.row) * outputs;

  const TileLarge<T> x(shared.large, large_begin,
                       large_begin + static_cast<int64_t>(place.planes) * large_step);
  x.fetch(params.input.data, params.planes * large_plane);
  ptx::cp_async_commit();
  const int64_t small_end = small_begin + static_cast<int64_t>(place.planes) * small_step;
  const TileSmall<T, K, S> y(shared.small, small_begin, small_end);
  const TileOffsets<T, K, S, kMax> offsets(shared.offsets, small_begin, small_end);
  ptx::cp_async_wait<0>();
  __syncthreads();

  if constexpr (K == 0 && kMax) {
    for (int i = static_cast<int>(threadIdx.x); i < place.planes * height * outputs;
         i += static_cast<int>(blockDim.x)) {
      int q;
      const int row = params.by_columns.divide(i, q);  // of all planes
      const PoolWindow columns = params.columns.window(q);
      Part part;
      part.clear(columns.first);
      int at = row * width + columns.start;
      for (int s = 0; s < columns.count; ++s) {
        part.take(0, to_accumulator(x.load(at)), columns.first + s);
        at += params.columns.dilation();
      }
      shared.row_values.store(i, from_accumulator<T>(part.value[0]));
      shared.row_taps.store(i, static_cast<uint8_t>(part.tap[0]));
    }
    __syncthreads();
  }

  const int items = TileItem::count(params, place);
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    const TileItem mine(params, place, item);
    const int q = mine.column;
    const int plane = mine.plane * large_step;
    const auto finish = [&](int p, Part& window, int offset) {
      const int at = mine.plane * small_step + (p - place.row) * outputs + q;
      if constexpr (!kMax) {
        window.divide(params.common_divisor != 0 ? params.common_divisor : divisor<Acc>(params, p, q));
      }
      y.store(at, from_accumulator<T>(window.value[0]));
      if constexpr (kMax) {
        if (params.index == Pool2dIndex::kUint8Offset) offsets.store(at, static_cast<uint8_t>(offset));
      }
    };
    if constexpr (K > 0) {
      const int left = q * S - params.columns.pad();
      const int first = max(-left, 0);
      const int last = min(K, width - left);
      roll_down<Part, K, S>(
          mine.row, mine.row_end, params.rows.pad(), height, first,
          [&](int h, Part& part) {
            const int corner = plane + (h - h_first) * width + left;
#pragma unroll
            for (int s = 0; s < K; ++s) {
              if (s >= first && s < last) part.take(0, to_accumulator(x.load(corner + s)), s);
            }
          },
          [&](int p, Part& window) {
            if constexpr (kMax) {
              finish(p, window, window.tap[0]);
            } else {
              finish(p, window, 0);
            }
          });
    } else {
      const PoolWindow columns = params.columns.window(q);
      for (int p = mine.row; p < mine.row_end; ++p) {
        const PoolWindow rows = params.rows.window(p);
        Part window;
        window.clear(rows.first * params.columns.kernel() + columns.first);
        for (int r = 0; r < rows.count; ++r) {
          if constexpr (kMax) {
            const int at = (mine.plane * height + rows.start + r * params.rows.dilation()) * outputs + q;
            window.take(0, to_accumulator(shared.row_values.load(at)),
                        (rows.first + r) * params.columns.kernel() + shared.row_taps.load(at));
          } else {
            int at = plane + (rows.start + r * params.rows.dilation()) * width + columns.start;
            for (int s = 0; s < columns.count; ++s) {
              window.take(0, to_accumulator(x.load(at)), 0);
              at += params.columns.dilation();
            }
          }
        }
        if constexpr (kMax) {
          finish(p, window, window.tap[0]);
        } else {
          finish(p, window, 0);
        }
      }
    }
  }
  __syncthreads();
  y.flush(params.output.data);
  if constexpr (kMax) {
    if (params.index == Pool2dIndex::kUint8Offset) offsets.flush(params.indices.data);
  }
}

}  // namespace fastcnn
