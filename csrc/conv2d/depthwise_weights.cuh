// The depthwise weights of a block's channels in shared memory, transposed from [channel][tap] as they lie in
// memory to [tap][channel]: a thread then reads its vector of channels in one access.
#pragma once

#include <cuda_runtime.h>

#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "common/tensor_view.h"
#include "conv2d/depthwise.h"

namespace fastcnn {

template <class T>
struct DepthwiseWeightShared {
  SharedArray<T, kDepthwiseWeightBytes / static_cast<int>(sizeof(T))> weights;
};

static_assert(sizeof(DepthwiseWeightShared<float>) == kDepthwiseWeightBytes, "what the plan asks for");

// Channel c owns the filters c * filters .. c * filters + filters - 1; its taps are counted through them all.
struct DepthwiseWeights {
  TensorView view;
  int channels = 0;
  int filters = 1;
  FastDiv filter_taps;     // R * S
  FastDiv filter_columns;  // S
};

// Loads taps first_tap .. first_tap + taps - 1 of the channels from first_channel on. tile_channels is a
// power of two, tile_channels * taps at most the capacity. The caller puts barriers before and after.
template <class T>
__device__ inline void load_depthwise_weights(DepthwiseWeightShared<T>& shared, const DepthwiseWeights& from,
                                              int first_channel, int tile_channels, int first_tap, int taps) {
  const T* weight = static_cast<const T*>(from.view.data);
  const int bits = 31 - __clz(tile_channels);
  for (int i = threadIdx.x; i < tile_channels * taps; i += blockDim.x) {
    const int channel = first_channel + (i & (tile_channels - 1));
    if (channel >= from.channels) continue;
    int tap, s;
    const int filter = from.filter_taps.divide(first_tap + (i >> bits), tap);
    const int r = from.filter_columns.divide(tap, s);
    const int64_t k = static_cast<int64_t>(channel) * from.filters + filter;
    shared.weights.store(
        i, load_global(weight + k * from.view.stride_n + r * from.view.stride_h + s * from.view.stride_w));
  }
}

}  // namespace fastcnn
