// Where the tiles of fprop and dgrad, and the pixels in them, lie.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/grouped.h"

namespace fastcnn::grouped {

// Where a tile lies.
struct TilePosition {
  int image, row, column;  // of its first pixel, in pixels of a phase
  int box_h, box_w;
};

__device__ inline TilePosition tile_at(const GroupedImageParams& params, int tile) {
  int h, w;
  const int n = params.tiles_h.divide(params.tiles_w.divide(tile, w), h);
  return {n * params.tile_n, h * params.tile_h, w * params.tile_w, params.first_h + h * params.tile_step_h,
          params.first_w + w * params.tile_step_w};
}

struct Slot {
  int n, h, w;
  bool valid;
};

__device__ inline Slot slot_at(const GroupedImageParams& params, int slot) {
  Slot result;
  int in_image;
  result.n = params.tile_pixels.divide(slot, in_image);
  result.h = params.tile_columns.divide(in_image, result.w);
  result.valid = result.n < params.tile_n;
  return result;
}

}  // namespace fastcnn::grouped
