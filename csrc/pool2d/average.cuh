// Average pooling, sliding and adaptive: fprop, and bprop by gathering.
//
// Tile: as in max.cuh: one thread per V channels of one output (of one input in bprop), or 2^k threads of a
// block where windows are too large for one (global pooling: 1x1 outputs of 7x7 to 224x224).
// Floor: fprop reads x once and writes y once, bprop reads dy once and writes dx once; one addition per tap.
// Memory bound.
// Why so: bprop adds, for each input, the gradients of the windows that cover it, each divided by that
// window's own divisor: no atomics, one write per element, one order of addition.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "pool2d/axis.cuh"
#include "pool2d/divisor.cuh"
#include "pool2d/problem.h"
#include "pool2d/sum.cuh"
#include "pool2d/walk.cuh"

namespace fastcnn {

template <class T, int V, bool kSplit>
__global__ void __launch_bounds__(kSplit ? kPoolSplitThreads : kPoolThreads, kSplit ? 2 : 4)
    average_fprop(const __grid_constant__ Pool2dParams params) {
  using Acc = accumulator_t<T>;
  const PoolLane<kSplit> lane(params);
  if (!kSplit && !lane.active) return;

  const PoolPlace at = params.box.place<V>(lane.active ? lane.item : 0);
  const PoolWindow rows = params.rows.window(at.y);
  const PoolWindow columns = params.columns.window(at.x);
  const T* first = address<const T>(params.input, PoolPlace{at.n, at.c, rows.start, columns.start});

  RunningSum<Acc, V> sum;
  lane.walk(rows.count, columns.count, [&](int row, int column) {
    const Vector<T, V> x =
        load_global<V>(first + row * params.input.stride_h + column * params.input.stride_w);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.value[i] += to_accumulator(x[i]);
  });
  if constexpr (kSplit) {
    lane.reduce(shared_memory<SumShared<Acc>>(), sum);
    if (!lane.active || lane.split != 0) return;
  }
  const Acc count = divisor<Acc>(params, at.y, at.x);
#pragma unroll
  for (int i = 0; i < V; ++i) sum.value[i] /= count;
  sum.template write<T>(address<T>(params.output, at));
}

template <class T, int V, bool kSplit>
__global__ void __launch_bounds__(kSplit ? kPoolSplitThreads : kPoolThreads, kSplit ? 2 : 4)
    average_bprop(const __grid_constant__ Pool2dParams params) {
  using Acc = accumulator_t<T>;
  const PoolLane<kSplit> lane(params);
  if (!kSplit && !lane.active) return;

  const PoolPlace at = params.box.place<V>(lane.active ? lane.item : 0);
  const PoolWindows rows = params.rows.covering(at.y);
  const PoolWindows columns = params.columns.covering(at.x);
  const T* grad = plane_address<const T>(params.input, at);

  RunningSum<Acc, V> sum;
  lane.walk(rows.end - rows.begin, columns.end - columns.begin, [&](int row, int column) {
    const int p = rows.begin + row;
    const int q = columns.begin + column;
    const Vector<T, V> dy = load_global<V>(grad + p * params.input.stride_h + q * params.input.stride_w);
    const Acc count = divisor<Acc>(params, p, q);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.value[i] += to_accumulator(dy[i]) / count;
  });
  if constexpr (kSplit) {
    lane.reduce(shared_memory<SumShared<Acc>>(), sum);
    if (!lane.active || lane.split != 0) return;
  }
  sum.template write<T>(address<T>(params.output, at));
}

}  // namespace fastcnn
