// What a block of the 1x1 kernel computes at a time.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/pointwise.h"

namespace fastcnn::pointwise {

struct Range {
  int first, end;
};

// Which part of the result, over which pieces of the reduction.
struct Item {
  Range rows, columns;
  int split, step, step_end;

  __device__ Item(const PointwiseParams& params, int index) {
    int tile, row_tile, column_tile;
    split = params.tiles.divide(index, tile);
    if (params.row_tiles_first) {
      column_tile = params.row_tiles.divide(tile, row_tile);
    } else {
      row_tile = params.column_tiles.divide(tile, column_tile);
    }
    rows.first = row_tile * params.tile_rows;
    rows.end = min(rows.first + params.tile_rows, params.out_row.extent);
    columns.first = column_tile * params.tile_columns;
    columns.end = min(columns.first + params.tile_columns, params.out_column.extent);
    step = split * params.split_steps;
    step_end = min(step + params.split_steps, params.steps);
  }
};

}  // namespace fastcnn::pointwise
