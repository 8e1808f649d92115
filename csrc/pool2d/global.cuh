// What the kernels of global pools share: one window for a whole plane, so the index of a maximum is the
// number of its pixel whatever way it is kept, and an average has one divisor.
//
// Fprop: `ranks` threads share a plane (or a vector of channels of an image), each reads every ranks-th
// vector of 16 bytes, several in flight at a time, and their parts meet in shared memory as a tree, always
// the same one.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "common/tensor_view.h"
#include "pool2d/plan.h"
#include "pool2d/problem.h"

namespace fastcnn {

struct GlobalParams {
  TensorView input;
  TensorView indices;
  TensorView output;
  Pool2dIndex index = Pool2dIndex::kNone;
  float divisor = 1;
  int pixels = 0;        // of a plane
  int ranks = 0;         // threads that share a plane
  FastDiv by_ranks;      // NCHW
  FastDiv by_pixels;     // NCHW bprop
  FastDiv by_slices;     // bprop: parts of an image (NHWC), of a group of planes (NCHW)
  FastDiv by_channels;   // NCHW
  int block_planes = 0;  // NCHW: planes of a block (fprop), of a group (bprop)
  int block_pixels = 0;  // bprop: pixels (NHWC) or elements (NCHW) of a slice
  int planes = 0;        // NCHW
  int lanes = 0;         // NHWC: vectors of channels side by side in a block
  int vectors = 0;       // NHWC: of channels, in all
  FastDiv by_lanes;      // NHWC
  FastDiv by_chunks;     // NHWC: parts of the channels
};

// Partial sums of V channels, or of V interleaved parts of one plane.
template <int V>
struct GlobalSum {
  float value[V];

  __device__ GlobalSum() {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = 0;
  }
  __device__ void take(int i, float x, int) { value[i] += x; }
  __device__ void merge(int i, float other, int) { value[i] += other; }
  __device__ float result(int i, float divisor) const { return value[i] / divisor; }
  // The V parts as one.
  __device__ GlobalSum<1> folded() const {
    GlobalSum<1> one;
#pragma unroll
    for (int i = 0; i < V; ++i) one.merge(0, value[i], 0);
    return one;
  }
};

// Maxima likewise, with the pixel of each; kNowhere until anything but -inf was seen, and where a plane has
// nothing else torch names its first pixel. Pixels are taken in order, and the order rules are torch's: the
// first of equal values wins, a NaN beats every number and the last NaN wins.
template <int V>
struct GlobalMax {
  static constexpr int kNowhere = INT_MAX;
  float value[V];
  int pixel[V];

  __device__ GlobalMax() {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      value[i] = -INFINITY;
      pixel[i] = kNowhere;
    }
  }
  __device__ void take(int i, float x, int x_pixel) {
    if (x > value[i] || x != x) {
      value[i] = x;
      pixel[i] = x_pixel;
    }
  }
  // Two parts whose pixels come in no order.
  __device__ void merge(int i, float other, int other_pixel) {
    const bool nan = value[i] != value[i];
    const bool other_nan = other != other;
    const bool later = other_pixel > pixel[i];
    const bool better = other > value[i] || (other == value[i] && !later);
    if (other_nan ? !nan || later : !nan && better) {
      value[i] = other;
      pixel[i] = other_pixel;
    }
  }
  __device__ float result(int i, float) const { return value[i]; }
  __device__ int named(int i) const { return pixel[i] == kNowhere ? 0 : pixel[i]; }
  __device__ GlobalMax<1> folded() const {
    GlobalMax<1> one;
#pragma unroll
    for (int i = 0; i < V; ++i) one.merge(0, value[i], pixel[i]);
    return one;
  }
};

template <bool kMax, int V>
struct GlobalPartOf {
  using type = GlobalMax<V>;
};
template <int V>
struct GlobalPartOf<false, V> {
  using type = GlobalSum<V>;
};

// One part of V values per thread, in groups of W: so 16-byte accesses of neighbouring threads stand side by
// side.
template <bool kMax, int V>
struct GlobalShared;
template <int V>
struct GlobalShared<false, V> {
  static constexpr int W = V < 4 ? V : 4;
  SharedArray<float, kGlobalThreads * V> values;

  __device__ void store(int slot, const GlobalSum<V>& part) {
#pragma unroll
    for (int g = 0; g < V; g += W) {
      Vector<float, W> group;
#pragma unroll
      for (int i = 0; i < W; ++i) group[i] = part.value[g + i];
      values.template store_vector<W>(g * kGlobalThreads + slot * W, group);
    }
  }
  __device__ void merge(int slot, GlobalSum<V>& part) const {
#pragma unroll
    for (int g = 0; g < V; g += W) {
      const Vector<float, W> group = values.template load_vector<W>(g * kGlobalThreads + slot * W);
#pragma unroll
      for (int i = 0; i < W; ++i) part.merge(g + i, group[i], 0);
    }
  }
};
template <int V>
struct GlobalShared<true, V> {
  static constexpr int W = V < 4 ? V : 4;
  SharedArray<float, kGlobalThreads * V> values;
  SharedArray<int, kGlobalThreads * V> pixels;

  __device__ void store(int slot, const GlobalMax<V>& part) {
#pragma unroll
    for (int g = 0; g < V; g += W) {
      Vector<float, W> group;
      Vector<int, W> where;
#pragma unroll
      for (int i = 0; i < W; ++i) {
        group[i] = part.value[g + i];
        where[i] = part.pixel[g + i];
      }
      values.template store_vector<W>(g * kGlobalThreads + slot * W, group);
      pixels.template store_vector<W>(g * kGlobalThreads + slot * W, where);
    }
  }
  __device__ void merge(int slot, GlobalMax<V>& part) const {
#pragma unroll
    for (int g = 0; g < V; g += W) {
      const Vector<float, W> group = values.template load_vector<W>(g * kGlobalThreads + slot * W);
      const Vector<int, W> where = pixels.template load_vector<W>(g * kGlobalThreads + slot * W);
#pragma unroll
      for (int i = 0; i < W; ++i) part.merge(g + i, group[i], where[i]);
    }
  }
};
static_assert(sizeof(GlobalShared<true, 8>) == pool2d_global_bytes(8, true));
static_assert(sizeof(GlobalShared<false, 1>) == pool2d_global_bytes(1, false));

// Brings the parts of ranks 0 .. ranks - 1 together in rank 0. The part of rank r lies in slot
// mine + (r - rank) * step; threads of other ranks only keep the barriers.
template <class Shared, class Part>
__device__ inline void global_tree(Shared& shared, Part& part, int mine, int step, int rank, int ranks) {
  for (int count = ranks; count > 1;) {
    const int half = (count + 1) / 2;
    if (rank >= half && rank < count) shared.store(mine, part);
    __syncthreads();
    if (rank + half < count) shared.merge(mine + half * step, part);
    count = half;
  }
}

// The results of V channels, or of one plane.
template <class T, int V, class Part>
__device__ inline Vector<T, V> global_result(const Part& part, float divisor) {
  Vector<T, V> y;
#pragma unroll
  for (int i = 0; i < V; ++i) y[i] = from_accumulator<T>(part.result(i, divisor));
  return y;
}

template <class Index, int V, class Part>
__device__ inline void store_global_pixels(const TensorView& view, int n, int c, const Part& part) {
  Vector<Index, V> pixels;
#pragma unroll
  for (int i = 0; i < V; ++i) pixels[i] = static_cast<Index>(part.named(i));
  store_global<V>(static_cast<Index*>(view.data) + n * view.stride_n + c * view.stride_c, pixels);
}

template <int V, class Part>
__device__ inline void store_global_indices(const GlobalParams& params, int n, int c, const Part& part) {
  if (params.index == Pool2dIndex::kUint8Offset) {
    store_global_pixels<uint8_t, V>(params.indices, n, c, part);
  } else if (params.index == Pool2dIndex::kInt32Offset) {
    store_global_pixels<int32_t, V>(params.indices, n, c, part);
  } else if (params.index == Pool2dIndex::kInt64Flat) {
    store_global_pixels<int64_t, V>(params.indices, n, c, part);
  }
}

// The pixels that V indices name, which may hold anything; -1 for one that is none of the plane.
template <class Index, int V>
__device__ inline Vector<int, V> load_global_pixels(const TensorView& view, int n, int c, int pixels) {
  const Vector<Index, V> index =
      load_global<V>(static_cast<const Index*>(view.data) + n * view.stride_n + c * view.stride_c);
  Vector<int, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t pixel = static_cast<int64_t>(index[i]);
    result[i] = pixel >= 0 && pixel < pixels ? static_cast<int>(pixel) : -1;
  }
  return result;
}

template <int V>
__device__ inline Vector<int, V> load_global_indices(const GlobalParams& params, int n, int c) {
  if (params.index == Pool2dIndex::kUint8Offset) {
    return load_global_pixels<uint8_t, V>(params.indices, n, c, params.pixels);
  }
  if (params.index == Pool2dIndex::kInt32Offset) {
    return load_global_pixels<int32_t, V>(params.indices, n, c, params.pixels);
  }
  return load_global_pixels<int64_t, V>(params.indices, n, c, params.pixels);
}

}  // namespace fastcnn
