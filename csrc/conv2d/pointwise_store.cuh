// What becomes of a 1x1 convolution's sums: the epilogue and the result, zeros beside it in dgrad of a
// stride, or a split's partial sums. Where neighbours are no aligned vectors, the warp transposes its sums
// until its lanes run along the columns: each of its stores is 32 neighbours.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "conv2d/epilogue.cuh"
#include "conv2d/gather_row.cuh"
#include "conv2d/pointwise_item.cuh"

namespace fastcnn::pointwise {

// Zeros beside V neighbouring columns that stand at `output`; a pair's own is there already.
template <class T, int V>
__device__ inline void store_zeros(const PointwiseParams& params, int row, int column, T* output) {
  int pixel, w;
  params.image_pixels.divide(params.pixels_in_rows ? row : column, pixel);
  const int h = params.image_width.divide(pixel, w);
  const int rows = min(params.cell_h, params.image_h - h * params.cell_h);
  const int columns = min(params.cell_w, params.image_w - w * params.cell_w);
  const bool pairs = V == 1 && params.cell_pairs;
  for (int i = 0; i < rows; ++i) {
    T* line = output + i * params.cell_stride_h;
    if (pairs && i > 0) store_global<2>(line, Vector<T, 2>{});
    for (int j = pairs ? 2 : i == 0 ? 1 : 0; j < columns; ++j) {
      store_global<V>(line + j * params.cell_stride_w, Vector<T, V>{});
    }
  }
}

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
  if (params.cell_h * params.cell_w > 1) store_zeros<T, V>(params, row, column, output);
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
__device__ inline void store_run(const PointwiseParams& params, const Item& item, int row, int column,
                                 const float (&sums)[8]) {
  if (row >= item.rows.end) return;
  if (params.partials != nullptr) {
    float* partials = params.partials + item.split * params.split_elements +
                      static_cast<int64_t>(row) * params.out_column.extent + column;
#pragma unroll
    for (int v = 0; v < 8; v += 4) {
      const Vector<float, 4> part{{sums[v], sums[v + 1], sums[v + 2], sums[v + 3]}};
      store_global_if<4>(column + v < item.columns.end, partials + v, part);
    }
  } else if (params.store_vector == 8) {
    store_parts<T, 8>(params, row, column, item.columns.end, sums);
  } else {
    store_parts<T, 4>(params, row, column, item.columns.end, sums);
  }
}

// 8 rows of a column from `row` on, those that exist.
template <class T>
__device__ inline void store_column(const PointwiseParams& params, const Item& item, int row, int column,
                                    const float (&sums)[8]) {
  const int count = column < item.columns.end ? min(item.rows.end - row, 8) : 0;
  if (params.partials != nullptr) {
    float* partials = params.partials + item.split * params.split_elements +
                      static_cast<int64_t>(row) * params.out_column.extent + column;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      if (r < count) store_global(partials + static_cast<int64_t>(r) * params.out_column.extent, sums[r]);
    }
    return;
  }
  if (count <= 0) return;
  const int64_t offset = params.out_column.offset(column);
  T* output = static_cast<T*>(params.output);
  Epilogue rest = params.epilogue;  // bias and residual are added here, in finish's order
  rest.residual = nullptr;
  float left[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) left[r] = sums[r];
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    if (r % 4 == 0) {
      // What four rows wait for in memory is asked for at once.
      T residual[4] = {};
      if (params.epilogue.residual != nullptr) {
        const T* from = static_cast<const T*>(params.epilogue.residual) + offset;
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          residual[u] = load_global_if(r + u < count, from + params.out_row.offset(row + r + u));
        }
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        if (r + u < count) {
          left[u] += load_bias<T>(params.epilogue, params.pixels_in_rows ? column : row + r + u);
        }
        left[u] += to_accumulator(residual[u]);
      }
    }
    const float sum[1] = {left[0]}, bias[1] = {};
    const int64_t at = offset + params.out_row.offset(row + r);
    const Vector<T, 1> result = finish<T>(rest, sum, bias, at);
    if (params.cell_pairs) {
      store_global<2>(output + at, Vector<T, 2>{{result[0], from_accumulator<T>(0.0f)}});
    } else {
      store_global<1>(output + at, result);
    }
#pragma unroll
    for (int next = 1; next < 8; ++next) left[next - 1] = left[next];
  }
  if (params.cell_h * params.cell_w == 1) return;
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    store_zeros<T, 1>(params, row + r, column, output + offset + params.out_row.offset(row + r));
  }
}

// A warp's 8 rows x 32 columns from `row` and `column` on, as gather_row and gather_column take them.
template <class T>
__device__ inline void store_rows(const PointwiseParams& params, const Item& item, int row, int column,
                                  const float (&pairs)[4][2]) {
  const int lane = threadIdx.x % 32;
  float own[8];
  if (params.store_vector == 1) {
    gather_column(pairs, lane, own);
    store_column<T>(params, item, row, column + gathered_column(lane), own);
  } else {
    gather_row(pairs, lane % 4, own);
    store_run<T>(params, item, row + lane / 4, column + lane % 4 * 8, own);
  }
}

// The bias gradient's sum of one filter.
template <class T>
__device__ inline void store_bias_grad(const PointwiseParams& params, const Item& item, int row, float sum) {
  if (row >= item.rows.end) return;
  if (params.partials == nullptr) {
    store_global(static_cast<T*>(params.bias_grad) + row, from_accumulator<T>(sum));
  } else {
    store_global(params.partials + item.split * params.split_elements +
                     static_cast<int64_t>(params.out_row.extent) * params.out_column.extent + row,
                 sum);
  }
}

}  // namespace fastcnn::pointwise
