// How threads find their work: from a 32-bit item number to a place in the output, from a thread to its share
// of a window, and from the shares back to one result in a fixed order.
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

namespace fastcnn {

// The channels c .. c + V - 1 of one pixel.
struct PoolPlace {
  int n;
  int c;
  int y;
  int x;
};

// A box of the output, cut by the launcher so that its items can be counted in 32 bits. Items follow the
// output's memory order, so neighbouring threads write neighbouring addresses: N C Y X, or N Y X C with the
// channels counted in vectors.
class PoolBox {
 public:
  PoolBox() = default;
  // start and extent in memory order; the product of the extents is below 2^31.
  PoolBox(const int (&start)[4], const int (&extent)[4], bool channels_last)
      : items_(extent[0] * extent[1] * extent[2] * extent[3]),
        channels_last_(channels_last),
        by_1_(extent[1]),
        by_2_(extent[2]),
        by_3_(extent[3]) {
    for (int i = 0; i < 4; ++i) start_[i] = start[i];
  }

  __host__ __device__ int items() const { return items_; }
  __host__ __device__ bool channels_last() const { return channels_last_; }

  template <int V>
  __device__ PoolPlace place(int item) const {
    int i3, i2, i1;
    item = by_3_.divide(item, i3);
    item = by_2_.divide(item, i2);
    const int i0 = by_1_.divide(item, i1) + start_[0];
    i1 += start_[1];
    i2 += start_[2];
    i3 += start_[3];
    return channels_last_ ? PoolPlace{i0, i3 * V, i1, i2} : PoolPlace{i0, i1 * V, i2, i3};
  }

 private:
  int items_ = 0;
  bool channels_last_ = false;
  int start_[4] = {0, 0, 0, 0};
  FastDiv by_1_;
  FastDiv by_2_;
  FastDiv by_3_;
};

// What a pool kernel gets.
struct Pool2dParams {
  PoolBox box;
  PoolAxis rows;
  PoolAxis columns;
  TensorView input;
  TensorView indices;
  TensorView output;
  Pool2dIndex index = Pool2dIndex::kNone;
  FastDiv by_kernel_w;
  bool adaptive = false;
  bool count_include_pad = true;
  int64_t divisor_override = 0;
  int outputs_log2 = 0;  // of split kernels: items per block
  int splits_log2 = 0;   // and threads per item
};

template <class T>
__device__ inline T* address(const TensorView& view, const PoolPlace& at) {
  return static_cast<T*>(view.data) + at.n * view.stride_n + at.c * view.stride_c + at.y * view.stride_h +
         at.x * view.stride_w;
}

// The start of plane (n, c), whatever y and x.
template <class T>
__device__ inline T* plane_address(const TensorView& view, const PoolPlace& at) {
  return static_cast<T*>(view.data) + at.n * view.stride_n + at.c * view.stride_c;
}

// A thread's part in its block. In a split block, the threads of one item stand side by side where
// neighbouring taps are neighbouring addresses (NCHW), and the threads of neighbouring items do where
// channels are (NHWC).
template <bool kSplit>
struct PoolLane {
  int item;
  int split;
  int splits;
  int partner_step;  // from the thread of one split to that of the next
  bool active;       // whether there is such an item; inactive threads still keep the barriers

  __device__ explicit PoolLane(const Pool2dParams& params) {
    const int thread = static_cast<int>(threadIdx.x);
    if (kSplit) {
      splits = 1 << params.splits_log2;
      const int outputs = 1 << params.outputs_log2;
      const bool channels_last = params.box.channels_last();
      split = channels_last ? thread >> params.outputs_log2 : thread & (splits - 1);
      const int output = channels_last ? thread & (outputs - 1) : thread >> params.splits_log2;
      partner_step = channels_last ? outputs : 1;
      item = static_cast<int>(blockIdx.x) * outputs + output;
    } else {
      split = 0;
      splits = 1;
      partner_step = 0;
      item = static_cast<int>(blockIdx.x * blockDim.x) + thread;
    }
    active = item < params.box.items();
  }

  // Calls visit(row, column) for this thread's share of a rows x columns grid, in row-major order.
  template <class Visit>
  __device__ void walk(int rows, int columns, Visit&& visit) const {
    if (!kSplit) {
      for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) visit(row, column);
      }
      return;
    }
    if (!active || rows <= 0 || columns <= 0) return;
    const int row_step = splits / columns;
    const int column_step = splits - row_step * columns;
    int row = split / columns;
    int column = split - row * columns;
    while (row < rows) {
      visit(row, column);
      row += row_step;
      column += column_step;
      if (column >= columns) {
        column -= columns;
        ++row;
      }
    }
  }

  // Brings the splits' partial results together as a tree, always the same one. `partial` must know
  // store(shared, slot) and merge(shared, slot). The result is that of split 0.
  template <class Shared, class Partial>
  __device__ void reduce(Shared& shared, Partial& partial) const {
    const int slot = static_cast<int>(threadIdx.x);
    partial.store(shared, slot);
    for (int half = splits >> 1; half > 0; half >>= 1) {
      __syncthreads();
      if (split < half) {
        partial.merge(shared, slot + half * partner_step);
        partial.store(shared, slot);
      }
    }
  }
};

}  // namespace fastcnn
