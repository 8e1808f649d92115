// What the strip kernels share (NHWC, overlapping windows): a block walks down a strip of rows with
// `columns` x `lanes` threads, one for each column and vector of 16 bytes of channels, while the rows that it
// reads stream through a ring in shared memory.
//
// Why a ring: each element is loaded once (cp.async, 16 bytes), whatever number of windows hold it; along the
// columns they share it in shared memory, along the rows in registers (rolling.cuh). kRingRows - 1 rows are
// always under way while one is computed, with one barrier per row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "common/tensor_view.h"
#include "pool2d/axis.cuh"
#include "pool2d/plan.h"
#include "pool2d/problem.h"
#include "ptx/cp_async.cuh"

namespace fastcnn {

// What a phase of a dilated pool is away from the next.
struct StripPhase {
  int64_t step_h = 0;
  int64_t step_w = 0;
};

// A pool dilated d times whose image and padding are multiples of d is d * d undilated pools, phases, each of
// every d-th row and column: for the kernels they are images like others, with their own strides.
struct StripParams {
  TensorView input;
  TensorView indices;
  TensorView output;
  PoolAxis rows;
  PoolAxis columns;
  StripPhase input_phase;
  StripPhase indices_phase;
  StripPhase output_phase;
  FastDiv by_dilation;
  Pool2dIndex index = Pool2dIndex::kNone;
  // What the block covers of the tensor that the pass writes.
  int block_rows = 0;
  int block_columns = 0;
  int lanes = 0;
  int vectors = 0;  // of channels, in all
  FastDiv by_lanes;
  FastDiv by_chunks;        // parts of the channels
  FastDiv by_column_tiles;  // parts of a row
  FastDiv by_strips;        // parts of an image's rows
  // Averages only.
  float common_divisor = 0;  // 0: windows differ
  int64_t divisor_override = 0;
  bool count_include_pad = true;
  bool adaptive = false;
};

// A block's part of the output, and a thread's column and lane in it.
struct StripPlace {
  int n, phase_h, phase_w;
  int vector;  // the first of the block's lanes
  int lanes;   // of them that exist
  int row, row_end;
  int column, column_end;
  int my_column, my_lane;
  bool active;

  __device__ StripPlace(const StripParams& params, int rows, int columns) {
    int chunk, tile, strip;
    int rest = params.by_chunks.divide(static_cast<int>(blockIdx.x), chunk);
    rest = params.by_column_tiles.divide(rest, tile);
    rest = params.by_strips.divide(rest, strip);
    n = params.by_dilation.divide(params.by_dilation.divide(rest, phase_w), phase_h);
    vector = chunk * params.lanes;
    lanes = min(params.lanes, params.vectors - vector);
    row = strip * params.block_rows;
    row_end = min(row + params.block_rows, rows);
    column = tile * params.block_columns;
    column_end = min(column + params.block_columns, columns);
    my_column = column + params.by_lanes.divide(static_cast<int>(threadIdx.x), my_lane);
    active = my_column < column_end && my_lane < lanes;
  }

  // The image's first element.
  __device__ int64_t image(const TensorView& view, const StripPhase& phase) const {
    return n * view.stride_n + phase_h * phase.step_h + phase_w * phase.step_w;
  }
};

// Rows of a tensor on their way through shared memory: `columns` pixels from `first_column` on, `lanes`
// vectors of V elements each.
template <class E, int V, int kRowVectors>
class RowRing {
 public:
  using Array = SharedArray<E, kStripRingRows * kRowVectors * V>;

  __device__ RowRing(Array& array, const StripParams& params, const TensorView& view, const StripPhase& phase,
                     const StripPlace& place, int first_row, int row_end, int first_column, int column_end)
      : array_(array),
        row_(static_cast<const E*>(view.data) + place.image(view, phase) +
             static_cast<int64_t>(place.vector) * V + first_row * view.stride_h +
             first_column * view.stride_w),
        row_stride_(view.stride_h),
        rows_(row_end - first_row) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      int lane;
      const int column =
          params.by_lanes.divide(static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x), lane);
      const bool mine = first_column + column < column_end && lane < place.lanes;
      offset_[i] = mine ? column * static_cast<int>(view.stride_w) + lane * V : -1;
    }
  }

  // Issues the copies of the next row, if there is one.
  __device__ void issue() {
    if (issued_ < rows_) {
      const int slot = issued_ % kStripRingRows * kRowVectors;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (offset_[i] >= 0) {
          const int vector = slot + static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x);
          ptx::cp_async<static_cast<int>(V * sizeof(E))>(array_.address(vector * V), row_ + offset_[i]);
        }
      }
      row_ += row_stride_;
    }
    ++issued_;
  }

  // Of the row that came as number `row` of this ring.
  __device__ Vector<E, V> read(int row, int vector) const {
    return array_.template load_vector<V>((row % kStripRingRows * kRowVectors + vector) * V);
  }

 private:
  // A row has at most three times as many vectors as the block has threads: (columns - 1) * S + 3 pixels.
  static constexpr int kCopies = 3;

  Array& array_;
  const E* row_;
  int64_t row_stride_;
  int rows_;
  int issued_ = 0;
  int offset_[kCopies];
};

}  // namespace fastcnn
