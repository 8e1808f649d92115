// Global max and average pooling, NHWC, both passes: one window for a whole plane (global.cuh).
//
// Tile of fprop: one image, `lanes` vectors of 16 bytes of channels. Threads run along the lanes first, then
// along the pixels: thread (rank, lane) reads the lane's vector of every ranks-th pixel, up to 8 of them (4
// of maxima) under way before the first is used; then a tree over the ranks, and 16 bytes of y a lane.
//
// Tile of bprop: one image, the same lanes, block_pixels pixels. dy (and the index) of each lane is read
// once, reaches the other threads through shared memory, and goes out as 16 bytes a pixel: dy / (H * W), or
// dy at the pixel that was chosen and 0 elsewhere.
//
// Floor, bytes per channel of an image at e bytes an element: (H * W + 1) * e, and the index. Read beyond it:
// in bprop, dy once more for each further slice of an image.
// Arithmetic per element: a conversion and an addition, or two comparisons and two moves; in bprop one move,
// or a comparison and a move. Memory bound, and by latency where one image is all there is: so lanes shrink
// to a sector of 32 bytes and ranks grow until every SM has a block.
// Registers (ptxas, sm_90a): fprop 40 to 62, bprop 24 to 30. The loads of a batch stand together in the code.
#pragma once

#include <cuda_runtime.h>

#include "pool2d/global.cuh"

namespace fastcnn {

// A block's image and vectors, and a thread's part of them.
struct GlobalLane {
  int n;
  int slice;
  int vector;
  int lane;
  int rank;
  bool active;

  __device__ explicit GlobalLane(const GlobalParams& params) {
    int chunk;
    const int rest = params.by_slices.divide(static_cast<int>(blockIdx.x), slice);
    n = params.by_chunks.divide(rest, chunk);
    rank = params.by_lanes.divide(static_cast<int>(threadIdx.x), lane);
    vector = chunk * params.lanes + lane;
    active = rank < params.ranks && vector < params.vectors;
  }
};

template <class T, bool kMax>
__global__ void __launch_bounds__(kGlobalThreads, 2)
    global_nhwc_fprop(const __grid_constant__ GlobalParams params) {
  constexpr int V = 16 / sizeof(T);
  constexpr int kLoads = kMax ? 4 : 8;
  auto& shared = shared_memory<GlobalShared<kMax, V>>();

  const GlobalLane mine(params);
  typename GlobalPartOf<kMax, V>::type part;
  if (mine.active) {
    const int step = static_cast<int>(params.input.stride_w) * params.ranks;
    const T* from = static_cast<const T*>(params.input.data) + mine.n * params.input.stride_n +
                    mine.rank * params.input.stride_w + mine.vector * V;
    for (int pixel = mine.rank; pixel < params.pixels; pixel += kLoads * params.ranks) {
      Vector<T, V> x[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        x[j] = load_global_if<V>(pixel + j * params.ranks < params.pixels, from + j * step);
      }
      from += kLoads * static_cast<int64_t>(step);
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int at = pixel + j * params.ranks;
        if (kMax && at >= params.pixels) continue;  // a sum takes the zeros
#pragma unroll
        for (int i = 0; i < V; ++i) part.take(i, to_accumulator(x[j][i]), at);
      }
    }
  }
  global_tree(shared, part, static_cast<int>(threadIdx.x), params.lanes, mine.rank, params.ranks);
  if (!mine.active || mine.rank != 0) return;

  const int c = mine.vector * V;
  store_global<V>(static_cast<T*>(params.output.data) + mine.n * params.output.stride_n + c,
                  global_result<T, V>(part, params.divisor));
  if constexpr (kMax) store_global_indices<V>(params, mine.n, c, part);
}

template <class T, bool kMax>
struct GlobalNhwcBpropShared;
template <class T>
struct GlobalNhwcBpropShared<T, false> {
  SharedArray<T, kGlobalLanes * (16 / static_cast<int>(sizeof(T)))> grads;
};
template <class T>
struct GlobalNhwcBpropShared<T, true> {
  SharedArray<T, kGlobalLanes * (16 / static_cast<int>(sizeof(T)))> grads;
  SharedArray<int, kGlobalLanes * (16 / static_cast<int>(sizeof(T)))> pixels;
};
static_assert(sizeof(GlobalNhwcBpropShared<float, true>) == pool2d_global_nhwc_bprop_bytes(4, true));
static_assert(sizeof(GlobalNhwcBpropShared<__half, false>) == pool2d_global_nhwc_bprop_bytes(2, false));

template <class T, bool kMax>
__global__ void __launch_bounds__(kGlobalThreads, 2)
    global_nhwc_bprop(const __grid_constant__ GlobalParams params) {
  constexpr int V = 16 / sizeof(T);
  constexpr int W = V < 4 ? V : 4;
  auto& shared = shared_memory<GlobalNhwcBpropShared<T, kMax>>();

  const GlobalLane mine(params);
  const int c = mine.vector * V;
  if (mine.active && mine.rank == 0) {
    Vector<T, V> dy =
        load_global<V>(static_cast<const T*>(params.input.data) + mine.n * params.input.stride_n + c);
    if constexpr (kMax) {
      const Vector<int, V> chosen = load_global_indices<V>(params, mine.n, c);
#pragma unroll
      for (int g = 0; g < V; g += W) {
        Vector<int, W> group;
#pragma unroll
        for (int i = 0; i < W; ++i) group[i] = chosen[g + i];
        shared.pixels.template store_vector<W>(mine.lane * V + g, group);
      }
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) dy[i] = from_accumulator<T>(to_accumulator(dy[i]) / params.divisor);
    }
    shared.grads.template store_vector<V>(mine.lane * V, dy);
  }
  __syncthreads();
  if (!mine.active) return;

  const Vector<T, V> dy = shared.grads.template load_vector<V>(mine.lane * V);
  Vector<int, V> chosen;
  if constexpr (kMax) {
#pragma unroll
    for (int g = 0; g < V; g += W) {
      const Vector<int, W> group = shared.pixels.template load_vector<W>(mine.lane * V + g);
#pragma unroll
      for (int i = 0; i < W; ++i) chosen[g + i] = group[i];
    }
  }
  const int begin = mine.slice * params.block_pixels;
  const int end = min(begin + params.block_pixels, params.pixels);
  T* to = static_cast<T*>(params.output.data) + mine.n * params.output.stride_n +
          (begin + mine.rank) * params.output.stride_w + c;
  const int64_t step = params.output.stride_w * params.ranks;
  for (int pixel = begin + mine.rank; pixel < end; pixel += params.ranks, to += step) {
    if constexpr (kMax) {
      Vector<T, V> dx;
#pragma unroll
      for (int i = 0; i < V; ++i) dx[i] = pixel == chosen[i] ? dy[i] : from_accumulator<T>(0.0f);
      store_global<V>(to, dx);
    } else {
      store_global<V>(to, dy);
    }
  }
}

}  // namespace fastcnn
