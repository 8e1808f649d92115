// Sum over splits: output[e] = round(sum over splits of partials[split][e]).
//
// Walk: neighbouring threads take neighbouring elements, so reads of a split are contiguous; up to 16 threads
// share an element's splits, each adding every 16th in order, and are then summed pairwise through shared
// memory. Floor: bytes = partials once. Partials are small and fresh in L2: latency bounds it, hence the
// loads in flight and the threads per element. Why: the order depends on the count of splits alone, so the
// bits never change.
#pragma once

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/split_sum.h"

namespace fastcnn {

inline constexpr int kSplitSumThreads = 256;

struct SplitSumKernelParams {
  SplitSumParams sum;
  int elements = 0;       // of the output and the tail
  int split_threads = 1;  // a power of two
  int element_bits = 8;   // log2 of the elements per block
  FastDiv w, h, c;
};

template <class Acc>
struct SplitSumShared {
  SharedArray<Acc, kSplitSumThreads / 2> sums;
};

template <class T>
__global__ void split_sum(const __grid_constant__ SplitSumKernelParams params) {
  using Acc = accumulator_t<T>;
  const int lane = threadIdx.x & ((1 << params.element_bits) - 1);
  const int split_lane = threadIdx.x >> params.element_bits;
  const int64_t element = (static_cast<int64_t>(blockIdx.x) << params.element_bits) + lane;
  const bool active = element < params.elements;

  Acc sum = 0;
  if (active) {
    const Acc* partial = static_cast<const Acc*>(params.sum.partials) + element;
#pragma unroll 8
    for (int split = split_lane; split < params.sum.splits; split += params.split_threads) {
      sum += load_global(partial + static_cast<int64_t>(split) * params.elements);
    }
  }

  auto& shared = shared_memory<SplitSumShared<Acc>>();
  for (int half = params.split_threads / 2; half > 0; half /= 2) {
    const int slot = static_cast<int>(threadIdx.x) - (half << params.element_bits);
    if (split_lane >= half && split_lane < 2 * half) shared.sums.store(slot, sum);
    __syncthreads();
    if (split_lane < half) sum += shared.sums.load(threadIdx.x);
    __syncthreads();
  }

  if (active && split_lane == 0) {
    const int tail = static_cast<int>(element) - (params.elements - params.sum.tail);
    if (tail >= 0) {
      store_global(static_cast<T*>(params.sum.tail_output) + tail, from_accumulator<T>(sum));
      return;
    }
    int w, h, c;
    const int n = params.c.divide(params.h.divide(params.w.divide(static_cast<int>(element), w), h), c);
    const TensorView& y = params.sum.output;
    store_global(static_cast<T*>(y.data) + n * y.stride_n + c * y.stride_c + h * y.stride_h + w * y.stride_w,
                 from_accumulator<T>(sum));
  }
}

}  // namespace fastcnn
