// Global max and average pooling, NCHW, both passes: one window for a whole plane, whose pixels are one run
// of bytes (global.cuh).
//
// global_nchw_fprop, planes of any size and address: `ranks` threads a plane, several planes a block. A
// thread reads every ranks-th of the plane's aligned 16-byte vectors, up to 8 (4 of maxima) under way, and at
// most one of the elements before the first and one of those behind the last: ranks is at least the vector's
// length.
//
// global_nchw_staged_fprop, small planes of a dense tensor (7x7: 98 or 196 bytes, of which little is whole
// vectors): the block's planes are one run of bytes, which comes through shared memory 16 bytes at a time;
// ranks threads a plane read it there.
//
// global_nchw_bprop: the block's part of dx is one run of 16-byte vectors, and dy (and the index) of its
// planes is read once, into shared memory. A vector inside one plane is one value V times, or zeros and
// perhaps one hit; one that crosses into the next plane goes element by element.
//
// Floor, bytes per plane at e bytes an element: (H * W + 1) * e, and the index. Read beyond it: staged, up to
// 30 bytes a block; in bprop, dy of the planes that two slices share.
// Arithmetic per element: as in global_nhwc.cuh. Memory bound.
// Registers (ptxas, sm_90a): fprop 48 to 63, staged 39 or 40, bprop 24.
#pragma once

#include <cuda_runtime.h>

#include "pool2d/global.cuh"
#include "pool2d/tile.cuh"

namespace fastcnn {

// A thread's plane, and its rank there.
struct GlobalPlane {
  int plane;
  int rank;
  bool active;

  __device__ explicit GlobalPlane(const GlobalParams& params) {
    const int local = params.by_ranks.divide(static_cast<int>(threadIdx.x), rank);
    plane = static_cast<int>(blockIdx.x) * params.block_planes + local;
    active = local < params.block_planes && plane < params.planes;
  }
};

// Rank 0 writes what the ranks of its plane found.
template <class T, bool kMax, class Part>
__device__ inline void finish_global_plane(const GlobalParams& params, const GlobalPlane& mine,
                                           GlobalShared<kMax, 1>& shared, Part& one) {
  global_tree(shared, one, static_cast<int>(threadIdx.x), 1, mine.rank, params.ranks);
  if (!mine.active || mine.rank != 0) return;
  int c;
  const int n = params.by_channels.divide(mine.plane, c);
  store_global<1>(
      static_cast<T*>(params.output.data) + n * params.output.stride_n + c * params.output.stride_c,
      global_result<T, 1>(one, params.divisor));
  if constexpr (kMax) store_global_indices<1>(params, n, c, one);
}

template <class T, bool kMax>
__global__ void __launch_bounds__(kGlobalThreads, 2)
    global_nchw_fprop(const __grid_constant__ GlobalParams params) {
  constexpr int V = 16 / sizeof(T);
  constexpr int kLoads = kMax ? 4 : 8;
  auto& shared = shared_memory<GlobalShared<kMax, 1>>();

  const GlobalPlane mine(params);
  typename GlobalPartOf<kMax, V>::type part;
  if (mine.active) {
    int c;
    const int n = params.by_channels.divide(mine.plane, c);
    const T* from =
        static_cast<const T*>(params.input.data) + n * params.input.stride_n + c * params.input.stride_c;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(T));
    const int head = min((V - past) % V, params.pixels);
    const int whole = (params.pixels - head) / V;
    const int tail = head + whole * V;

    const bool in_head = mine.rank < head;
    const bool in_tail = tail + mine.rank < params.pixels;
    const T first = load_global_if(in_head, from + mine.rank);
    const T last = load_global_if(in_tail, from + tail + mine.rank);
    if (in_head) part.take(0, to_accumulator(first), mine.rank);
    const T* aligned = from + head;
    for (int vector = mine.rank; vector < whole; vector += kLoads * params.ranks) {
      Vector<T, V> x[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int at = vector + j * params.ranks;
        x[j] = load_global_if<V>(at < whole, aligned + at * V);
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int at = vector + j * params.ranks;
        if (kMax && at >= whole) continue;  // a sum takes the zeros
#pragma unroll
        for (int i = 0; i < V; ++i) part.take(i, to_accumulator(x[j][i]), head + at * V + i);
      }
    }
    if (in_tail) part.take(0, to_accumulator(last), tail + mine.rank);
  }
  auto one = part.folded();
  finish_global_plane<T, kMax>(params, mine, shared, one);
}

template <class T, bool kMax>
struct GlobalStagedShared {
  typename FlatRun<T, kGlobalStagedBytes / static_cast<int>(sizeof(T))>::Array run;
  GlobalShared<kMax, 1> parts;
};
static_assert(sizeof(GlobalStagedShared<float, true>) == pool2d_global_staged_bytes(true));
static_assert(sizeof(GlobalStagedShared<__half, false>) == pool2d_global_staged_bytes(false));

template <class T, bool kMax>
__global__ void __launch_bounds__(kGlobalThreads, 2)
    global_nchw_staged_fprop(const __grid_constant__ GlobalParams params) {
  constexpr int kParts = 4;
  auto& shared = shared_memory<GlobalStagedShared<T, kMax>>();

  const GlobalPlane mine(params);
  const int first_plane = static_cast<int>(blockIdx.x) * params.block_planes;
  const int planes = min(params.block_planes, params.planes - first_plane);
  const int64_t begin = static_cast<int64_t>(first_plane) * params.pixels;
  const FlatRun<T, kGlobalStagedBytes / static_cast<int>(sizeof(T))> run(shared.run, begin,
                                                                         begin + planes * params.pixels);
  run.fetch(params.input.data, static_cast<int64_t>(params.planes) * params.pixels);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();

  typename GlobalPartOf<kMax, kParts>::type part;
  if (mine.active) {
    const int corner = (mine.plane - first_plane) * params.pixels;
    for (int pixel = mine.rank; pixel < params.pixels; pixel += kParts * params.ranks) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int at = pixel + i * params.ranks;
        if (at < params.pixels) part.take(i, to_accumulator(run.load(corner + at)), at);
      }
    }
  }
  auto one = part.folded();
  finish_global_plane<T, kMax>(params, mine, shared.parts, one);
}

template <class T, bool kMax>
struct GlobalNchwBpropShared;
template <class T>
struct GlobalNchwBpropShared<T, false> {
  SharedArray<T, kGlobalBpropPlanes> grads;
};
template <class T>
struct GlobalNchwBpropShared<T, true> {
  SharedArray<T, kGlobalBpropPlanes> grads;
  SharedArray<int, kGlobalBpropPlanes> pixels;
};
static_assert(sizeof(GlobalNchwBpropShared<float, true>) == pool2d_global_nchw_bprop_bytes(4, true));
static_assert(sizeof(GlobalNchwBpropShared<__half, false>) == pool2d_global_nchw_bprop_bytes(2, false));

template <class T, bool kMax>
__global__ void __launch_bounds__(kGlobalThreads, 2)
    global_nchw_bprop(const __grid_constant__ GlobalParams params) {
  constexpr int V = 16 / sizeof(T);
  auto& shared = shared_memory<GlobalNchwBpropShared<T, kMax>>();

  // Elements begin .. end - 1 of a group of planes that starts at a whole vector.
  int slice;
  const int first_plane = params.by_slices.divide(static_cast<int>(blockIdx.x), slice) * params.block_planes;
  const int begin = slice * params.block_pixels;
  const int elements = min(params.block_planes, params.planes - first_plane) * params.pixels;
  const int end = min(begin + params.block_pixels, elements);
  if (begin >= end) return;
  const int plane_begin = params.by_pixels.divide(begin);
  const int plane_end = params.by_pixels.divide(end - 1) + 1;
  for (int i = static_cast<int>(threadIdx.x); i < plane_end - plane_begin;
       i += static_cast<int>(blockDim.x)) {
    int c;
    const int n = params.by_channels.divide(first_plane + plane_begin + i, c);
    const T dy = load_global(static_cast<const T*>(params.input.data) + n * params.input.stride_n +
                             c * params.input.stride_c);
    if constexpr (kMax) {
      shared.grads.store(i, dy);
      shared.pixels.store(i, load_global_indices<1>(params, n, c)[0]);
    } else {
      shared.grads.store(i, from_accumulator<T>(to_accumulator(dy) / params.divisor));
    }
  }
  __syncthreads();

  T* to = static_cast<T*>(params.output.data) + static_cast<int64_t>(first_plane) * params.pixels;
  for (int at = begin + static_cast<int>(threadIdx.x) * V; at < end; at += static_cast<int>(blockDim.x) * V) {
    int pixel;
    int plane = params.by_pixels.divide(at, pixel) - plane_begin;
    const int present = min(V, end - at);
    T dy = shared.grads.load(plane);
    int chosen = 0;
    if constexpr (kMax) chosen = shared.pixels.load(plane);
    Vector<T, V> dx;
    const int inside = min(present, params.pixels - pixel);  // of this plane
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] = !kMax || pixel + i == chosen ? dy : from_accumulator<T>(0.0f);
    }
    if (inside < present) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (i >= present) continue;
        if (pixel == params.pixels) {
          pixel = 0;
          ++plane;
          dy = shared.grads.load(plane);
          if constexpr (kMax) chosen = shared.pixels.load(plane);
        }
        dx[i] = !kMax || pixel == chosen ? dy : from_accumulator<T>(0.0f);
        ++pixel;
      }
    }
    if (present == V) {
      store_global<V>(to + at, dx);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (i < present) store_global(to + at + i, dx[i]);
      }
    }
  }
}

}  // namespace fastcnn
