// What the pooled kernels share: which tiles a block walks, which pixels a tile sees, and the maximum.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/pooled.h"

namespace fastcnn::pooled {

inline constexpr int kPixels = kPooledWindow * kPooledWindow;

// The filters and the tiles of this block; blocks that differ in filters alone are neighbours.
struct BlockTiles {
  int filter_tile, first, last;
  __device__ explicit BlockTiles(const PooledParams& params) {
    const int tiles = params.row_tiles * params.column_tiles.divisor();
    first = params.filter_tiles.divide(static_cast<int>(blockIdx.x), filter_tile) * params.tiles_per_block;
    last = min(first + params.tiles_per_block, tiles);
  }
};

// A tile's first row and column of windows.
struct TileStart {
  int row, column;
  __device__ TileStart(const PooledParams& params, int tile) {
    row = params.column_tiles.divide(tile, column) * params.tile_rows;
    column *= params.tile_columns;
  }
};

// Pixel number `index` of the box that a tile sees, its columns first. image_row counts through the tile's
// rows of windows; offset is of channel 0.
struct BoxPixel {
  int image_row, column;
  bool inside;  // the image, and the batch
  int64_t offset;
  __device__ BoxPixel(const PooledParams& params, TileStart start, int index) {
    image_row = params.box_columns.divide(index, column);
    int of_window, i;
    const int row = start.row + params.box_row_div.divide(image_row, of_window);
    const int n = params.image_rows.divide(row, i);
    const int h = kPooledWindow * i * params.stride_h - params.pad_top + of_window;
    const int w = kPooledWindow * start.column * params.stride_w - params.pad_left + column;
    inside = row < params.rows && static_cast<unsigned>(h) < static_cast<unsigned>(params.image_h) &&
             static_cast<unsigned>(w) < static_cast<unsigned>(params.image_w);
    offset = n * params.input.stride_n + h * params.input.stride_h + w * params.input.stride_w;
  }
};

// The maximum of rounded values in the order of max_pool2d: the first of equal ones, the last NaN.
template <class T>
__device__ inline void pool(const PooledParams& params, const float (&sums)[kPixels], float bias, T& best,
                            uint8_t& offset) {
  const float slope = params.epilogue.negative_slope.template in<float>();
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const T rounded = from_accumulator<T>(activate(sums[p] + bias, params.epilogue.activation, slope));
    const float value = to_accumulator(rounded);
    if (p == 0 || value > to_accumulator(best) || value != value) {
      best = rounded;
      offset = static_cast<uint8_t>(p);
    }
  }
}

}  // namespace fastcnn::pooled
