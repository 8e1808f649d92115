// What becomes of a 1x1 convolution's sums: the epilogue and the result, zeros beside it in dgrad of a
// stride, or a split's partial sums.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "conv2d/epilogue.cuh"
#include "conv2d/pointwise.h"

namespace fastcnn::pointwise {

// V neighbouring columns of a row, at `offset` of the result.
template <class T, int V>
__device__ inline void store_part(const PointwiseParams& params, int row, int column, int64_t offset,
                                  const float* sums) {
  // Biases come from L1 again for each row: registers to keep them in there are none.
  float sum[V], bias[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = sums[v];
  const T* biases = static_cast<const T*>(params.epilogue.bias);
  if (biases != nullptr && params.bias_vector) {
    const Vector<T, V> values = load_global<V>(biases + column);
#pragma unroll
    for (int v = 0; v < V; ++v) bias[v] = to_accumulator(values[v]);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      bias[v] = load_bias<T>(params.epilogue, params.pixels_in_rows ? column + v : row);
    }
  }
  T* output = static_cast<T*>(params.output) + offset;
  store_global<V>(output, finish<T>(params.epilogue, sum, bias, offset));
  if (params.cell_h * params.cell_w == 1) return;

  int pixel, w;
  params.image_pixels.divide(params.pixels_in_rows ? row : column, pixel);
  const int h = params.image_width.divide(pixel, w);
  const int rows = min(params.cell_h, params.image_h - h * params.cell_h);
  const int columns = min(params.cell_w, params.image_w - w * params.cell_w);
  for (int i = 0; i < rows; ++i) {
    for (int j = i == 0 ? 1 : 0; j < columns; ++j) {
      store_global<V>(output + i * params.cell_stride_h + j * params.cell_stride_w, Vector<T, V>{});
    }
  }
}

// 8 columns in parts of V. A loop with one copy of the epilogue: the parts move down to the first place.
template <class T, int V>
__device__ inline void store_parts(const PointwiseParams& params, int row, int column, int column_end,
                                   const float (&sums)[8]) {
  float left[8];
#pragma unroll
  for (int v = 0; v < 8; ++v) left[v] = sums[v];
  const int64_t offset = params.out_row.offset(row);
#pragma unroll 1
  for (int part = column; part < min(column + 8, column_end); part += V) {
    store_part<T, V>(params, row, part, offset + params.out_column.offset(part), left);
#pragma unroll
    for (int v = 0; v + V < 8; ++v) left[v] = left[v + V];
  }
}

// 8 columns of a row from `column` on, those before column_end.
template <class T>
__device__ inline void store_run(const PointwiseParams& params, int split, int row, int row_end, int column,
                                 int column_end, const float (&sums)[8]) {
  if (row >= row_end) return;
  if (params.partials != nullptr) {
    float* partials = params.partials + split * params.split_elements +
                      static_cast<int64_t>(row) * params.out_column.extent + column;
#pragma unroll
    for (int v = 0; v < 8; v += 4) {
      if (params.split_elements % 4 == 0 && params.out_column.extent % 4 == 0) {
        const Vector<float, 4> part{{sums[v], sums[v + 1], sums[v + 2], sums[v + 3]}};
        store_global_if<4>(column + v < column_end, partials + v, part);
      } else {
#pragma unroll
        for (int u = v; u < v + 4; ++u) {
          if (column + u < column_end) store_global(partials + u, sums[u]);
        }
      }
    }
    return;
  }
  if (params.store_vector == 8) {
    store_parts<T, 8>(params, row, column, column_end, sums);
  } else if (params.store_vector == 4) {
    store_parts<T, 4>(params, row, column, column_end, sums);
  } else {
    store_parts<T, 1>(params, row, column, column_end, sums);
  }
}

// The bias gradient's sum of one filter.
template <class T>
__device__ inline void store_bias_grad(const PointwiseParams& params, int split, int row, int row_end,
                                       float sum) {
  if (row >= row_end) return;
  if (params.partials == nullptr) {
    store_global(static_cast<T*>(params.bias_grad) + row, from_accumulator<T>(sum));
  } else {
    store_global(params.partials + split * params.split_elements +
                     static_cast<int64_t>(params.out_row.extent) * params.out_column.extent + row,
                 sum);
  }
}

}  // namespace fastcnn::pointwise
