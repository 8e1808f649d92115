// Max pooling, sliding and adaptive: fprop, bprop by gathering, and the pick that differentiates bprop.
//
// Tile: one thread holds V channels of one output (V elements fill 16 bytes where NHWC allows, else V is 1)
// and walks its window in row-major order; neighbouring threads hold neighbouring outputs in memory. Windows
// too large for one thread are shared by 2^k threads of a block (kSplit), whose partial maxima meet in shared
// memory as a tree.
// Floor: fprop reads x once and writes y and the indices once; bprop reads dy and the indices once and writes
// dx once. About one comparison per tap: memory bound on every chip. Overlapping windows read their common
// inputs from L1/L2.
// Why so: bprop asks for each input which windows chose it, rather than scattering from the windows: no
// atomics, one write per element, always the same order of addition, and no zero fill beforehand.
//
// Order rules are torch's: the first of equal values wins, a NaN beats every number and the last NaN wins, a
// window of nothing but -inf reports its first place.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "pool2d/axis.cuh"
#include "pool2d/problem.h"
#include "pool2d/sum.cuh"
#include "pool2d/walk.cuh"

namespace fastcnn {

template <class Acc>
struct MaxShared {
  SharedArray<Acc, kPoolSplitThreads> value;
  SharedArray<int, kPoolSplitThreads> row;
  SharedArray<int, kPoolSplitThreads> column;
};
static_assert(sizeof(MaxShared<float>) == pool2d_split_bytes(sizeof(float), true));

// The best value so far of V channels and where it was seen, in taps from the window's first valid one.
template <class Acc, int V, bool kTrack>
struct RunningMax {
  Acc value[V];
  int row[V];
  int column[V];

  __device__ RunningMax() {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      value[i] = static_cast<Acc>(-INFINITY);
      row[i] = 0;
      column[i] = 0;
    }
  }

  __device__ void see(int i, Acc candidate, int candidate_row, int candidate_column) {
    if (candidate > value[i] || candidate != candidate) {
      value[i] = candidate;
      if (kTrack) {
        row[i] = candidate_row;
        column[i] = candidate_column;
      }
    }
  }

  template <class Shared>
  __device__ void store(Shared& shared, int slot) const {
    shared.value.store(slot, value[0]);
    if (kTrack) {
      shared.row.store(slot, row[0]);
      shared.column.store(slot, column[0]);
    }
  }

  // The same rules as see(), between two threads that each saw every so many taps.
  template <class Shared>
  __device__ void merge(const Shared& shared, int slot) {
    const Acc other = shared.value.load(slot);
    const bool nan = value[0] != value[0];
    const bool other_nan = other != other;
    if (!kTrack) {
      if (other_nan || (!nan && other > value[0])) value[0] = other;
      return;
    }
    const int other_row = shared.row.load(slot);
    const int other_column = shared.column.load(slot);
    const bool later = other_row > row[0] || (other_row == row[0] && other_column > column[0]);
    bool take;
    if (nan || other_nan) {
      take = other_nan && (!nan || later);
    } else {
      take = other > value[0] || (other == value[0] && !later);
    }
    if (take) {
      value[0] = other;
      row[0] = other_row;
      column[0] = other_column;
    }
  }
};

template <class Index, int V, class At>
__device__ inline void store_indices(const TensorView& view, const PoolPlace& at, At&& index_of) {
  Vector<Index, V> indices;
#pragma unroll
  for (int i = 0; i < V; ++i) indices[i] = static_cast<Index>(index_of(i));
  store_global<V>(address<Index>(view, at), indices);
}

template <class T, int V, bool kTrack, bool kSplit>
__global__ void __launch_bounds__(kSplit ? kPoolSplitThreads : kPoolThreads, kSplit ? 2 : 4)
    max_fprop(const __grid_constant__ Pool2dParams params) {
  using Acc = accumulator_t<T>;
  const PoolLane<kSplit> lane(params);
  if (!kSplit && !lane.active) return;

  const PoolPlace at = params.box.place<V>(lane.active ? lane.item : 0);
  const PoolWindow rows = params.rows.window(at.y);
  const PoolWindow columns = params.columns.window(at.x);
  const T* first = address<const T>(params.input, PoolPlace{at.n, at.c, rows.start, columns.start});
  const int64_t row_step = params.input.stride_h * params.rows.dilation();
  const int64_t column_step = params.input.stride_w * params.columns.dilation();

  RunningMax<Acc, V, kTrack> best;
  lane.walk(rows.count, columns.count, [&](int row, int column) {
    const Vector<T, V> x = load_global<V>(first + row * row_step + column * column_step);
#pragma unroll
    for (int i = 0; i < V; ++i) best.see(i, to_accumulator(x[i]), row, column);
  });
  if constexpr (kSplit) {
    lane.reduce(shared_memory<MaxShared<Acc>>(), best);
    if (!lane.active || lane.split != 0) return;
  }

  Vector<T, V> y;
#pragma unroll
  for (int i = 0; i < V; ++i) y[i] = from_accumulator<T>(best.value[i]);
  store_global<V>(address<T>(params.output, at), y);
  if (!kTrack) return;

  const auto offset = [&](int i) {
    return (rows.first + best.row[i]) * params.columns.kernel() + columns.first + best.column[i];
  };
  const auto flat = [&](int i) {
    const int h = rows.start + best.row[i] * params.rows.dilation();
    const int w = columns.start + best.column[i] * params.columns.dilation();
    return static_cast<int64_t>(h) * params.columns.input() + w;
  };
  if (params.index == Pool2dIndex::kUint8Offset) store_indices<uint8_t, V>(params.indices, at, offset);
  if (params.index == Pool2dIndex::kInt32Offset) store_indices<int32_t, V>(params.indices, at, offset);
  if (params.index == Pool2dIndex::kInt64Flat) store_indices<int64_t, V>(params.indices, at, flat);
}

// Covering windows take the place of taps: for each, does its index name this very input?
template <class T, int V, class Index, bool kSplit>
__global__ void __launch_bounds__(kSplit ? kPoolSplitThreads : kPoolThreads, kSplit ? 2 : 4)
    max_bprop(const __grid_constant__ Pool2dParams params) {
  using Acc = accumulator_t<T>;
  constexpr bool kFlat = sizeof(Index) == 8;
  const PoolLane<kSplit> lane(params);
  if (!kSplit && !lane.active) return;

  const PoolPlace at = params.box.place<V>(lane.active ? lane.item : 0);
  const PoolWindows rows = params.rows.covering(at.y);
  const PoolWindows columns = params.columns.covering(at.x);
  const T* grad = plane_address<const T>(params.input, at);
  const Index* indices = plane_address<const Index>(params.indices, at);
  const int64_t here = static_cast<int64_t>(at.y) * params.columns.input() + at.x;

  RunningSum<Acc, V> sum;
  lane.walk(rows.end - rows.begin, columns.end - columns.begin, [&](int row, int column) {
    const int p = rows.begin + row;
    const int q = columns.begin + column;
    const int r = params.rows.tap(p, at.y);
    const int s = params.columns.tap(q, at.x);
    if (r < 0 || s < 0) return;
    const int64_t wanted = kFlat ? here : r * params.columns.kernel() + s;
    const Vector<Index, V> index =
        load_global<V>(indices + p * params.indices.stride_h + q * params.indices.stride_w);
    const Vector<T, V> dy = load_global<V>(grad + p * params.input.stride_h + q * params.input.stride_w);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (static_cast<int64_t>(index[i]) == wanted) sum.value[i] += to_accumulator(dy[i]);
    }
  });
  if constexpr (kSplit) {
    lane.reduce(shared_memory<SumShared<Acc>>(), sum);
    if (!lane.active || lane.split != 0) return;
  }
  sum.template write<T>(address<T>(params.output, at));
}

// The input at each index. An index that its window does not hold (that of a window without valid taps) gives
// 0: such an output does not depend on the input.
template <class T>
__global__ void __launch_bounds__(kPoolThreads, 4) max_gather(const __grid_constant__ Pool2dParams params) {
  const PoolLane<false> lane(params);
  if (!lane.active) return;
  const PoolPlace at = params.box.place<1>(lane.item);
  const int width = params.columns.input();

  int h = -1;
  int w = -1;
  if (params.index == Pool2dIndex::kInt64Flat) {
    const int64_t index = load_global(address<const int64_t>(params.indices, at));
    if (index >= 0 && index < static_cast<int64_t>(params.rows.input()) * width) {
      h = static_cast<int>(index / width);
      w = static_cast<int>(index % width);
    }
    if (!params.rows.holds(at.y, h) || !params.columns.holds(at.x, w)) h = -1;
  } else {
    const int offset = params.index == Pool2dIndex::kUint8Offset
                           ? load_global(address<const uint8_t>(params.indices, at))
                           : load_global(address<const int32_t>(params.indices, at));
    if (offset >= 0) {
      int s;
      const int r = params.by_kernel_w.divide(offset, s);
      h = params.rows.position(at.y, r);
      w = params.columns.position(at.x, s);
      if (w < 0) h = -1;
    }
  }
  T x = from_accumulator<T>(0);
  if (h >= 0) x = load_global(address<const T>(params.input, PoolPlace{at.n, at.c, h, w}));
  store_global(address<T>(params.output, at), x);
}

}  // namespace fastcnn
