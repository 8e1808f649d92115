// The sum of a window's share, in the accumulator's precision, and its one rounding at the end.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "pool2d/walk.cuh"

namespace fastcnn {

template <class Acc>
struct SumShared {
  SharedArray<Acc, kPoolSplitThreads> value;
};
static_assert(sizeof(SumShared<float>) == pool2d_split_bytes(sizeof(float), false));

template <class Acc, int V>
struct RunningSum {
  Acc value[V];

  __device__ RunningSum() {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = Acc(0);
  }
  template <class Shared>
  __device__ void store(Shared& shared, int slot) const {
    shared.value.store(slot, value[0]);
  }
  template <class Shared>
  __device__ void merge(const Shared& shared, int slot) {
    value[0] += shared.value.load(slot);
  }
  template <class T>
  __device__ void write(T* pointer) const {
    Vector<T, V> rounded;
#pragma unroll
    for (int i = 0; i < V; ++i) rounded[i] = from_accumulator<T>(value[i]);
    store_global<V>(pointer, rounded);
  }
};

}  // namespace fastcnn
