// The gradient of max pooling where large windows overlap, either layout (plane.cuh).
//
// Tile: whole planes of block_channels channels of an image (NHWC), or as many planes (NCHW). dy and offsets
// come into shared memory 16 bytes at a time, each once; then one thread a channel walks its windows in
// row-major order and adds each gradient at the input that the window chose, to float32 sums in shared memory
// which belong to it alone; then the block writes dx, 16 bytes at a time.
// Floor, bytes per channel at e bytes an element: P * Q * (e + 1) read, H * W * e written. Nothing beyond it.
// Why a scatter: one step a window, where gathering asks up to k * k windows for every input. Sums are never
// shared, so there are no atomics, and the order of addition is fixed. Bound by the latency of one channel's
// additions, P * Q of them one after the other; so blocks are narrow and two share an SM.
// Registers (ptxas, sm_90a): 38 for NHWC, 61 to 63 for NCHW.
#pragma once

#include <cuda_runtime.h>

#include "pool2d/plane.cuh"
#include "pool2d/tile.cuh"

namespace fastcnn {

template <class T>
struct PlaneBpropShared {
  static constexpr int kElements = pool2d_plane_bprop_elements(static_cast<int>(sizeof(T)));
  using Grads = FlatRun<T, kElements>;
  using Offsets = FlatRun<uint8_t, kElements>;
  typename Grads::Array grads;
  typename Offsets::Array offsets;
  SharedArray<float, kElements> sums;  // [pixel][channel]
};
static_assert(sizeof(PlaneBpropShared<float>) == pool2d_plane_bprop_bytes(4));
static_assert(sizeof(PlaneBpropShared<__half>) == pool2d_plane_bprop_bytes(2));

// Channel `mine` of `channels`: grad(o) and offset(o) are those of its window o.
template <class Sums, class Grad, class Offset>
__device__ inline void scatter_plane(const PlaneParams& params, Sums& sums, int mine, int channels,
                                     Grad&& grad, Offset&& offset) {
  // Under way together, ahead of the additions, which wait for each other.
  constexpr int kBatch = 8;
  const int width = params.columns.input();
  const int outputs = params.columns.output();
  const int windows = params.rows.output() * outputs;
  int p = 0;
  int q = 0;
  for (int first = 0; first < windows; first += kBatch) {
    float dy[kBatch];
    int target[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      target[i] = -1;
      if (first + i >= windows) continue;
      dy[i] = grad(first + i);
      int s;
      const int r = params.by_kernel_w.divide(offset(first + i), s);
      const int h = p * params.stride_h - params.rows.pad() + r * params.rows.dilation();
      const int w = q * params.stride_w - params.columns.pad() + s * params.columns.dilation();
      const bool inside =
          r < params.rows.kernel() && h >= 0 && h < params.rows.input() && w >= 0 && w < width;
      if (inside) target[i] = (h * width + w) * channels + mine;
      if (++q == outputs) {
        q = 0;
        ++p;
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (target[i] >= 0) sums.store(target[i], sums.load(target[i]) + dy[i]);
    }
  }
}

template <class T, bool kNhwc>
__global__ void __launch_bounds__(kPoolThreads, 2)
    plane_max_bprop(const __grid_constant__ PlaneParams params) {
  constexpr int V = 16 / sizeof(T);
  using Shared = PlaneBpropShared<T>;
  auto& shared = shared_memory<Shared>();

  const int channels = params.block_channels;
  const int pixels = params.rows.input() * params.columns.input();
  const int windows = params.rows.output() * params.columns.output();
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  int n = 0;
  int chunk = static_cast<int>(blockIdx.x);
  if (kNhwc) n = params.by_chunks.divide(chunk, chunk);
  const int c_first = chunk * channels;
  const int present = min(channels, params.channels - c_first);

  const int64_t begin = kNhwc ? 0 : static_cast<int64_t>(c_first) * windows;
  const int64_t end = kNhwc ? int64_t{windows} * channels : begin + static_cast<int64_t>(present) * windows;
  const typename Shared::Grads grads(shared.grads, begin, end);
  const typename Shared::Offsets offsets(shared.offsets, begin, end);
  if constexpr (kNhwc) {
    const T* dy = static_cast<const T*>(params.input.data) + n * params.input.stride_n + c_first;
    const uint8_t* taps =
        static_cast<const uint8_t*>(params.indices.data) + n * params.indices.stride_n + c_first;
    for (int i = thread; i < windows * params.by_lanes.divisor(); i += threads) {
      int lane, q;
      const int p = params.by_outputs.divide(params.by_lanes.divide(i, lane), q);
      if (lane * V >= present) continue;
      ptx::cp_async<16>(shared.grads.address(i * V),
                        dy + p * params.input.stride_h + q * params.input.stride_w + lane * V);
      ptx::cp_async<V>(shared.offsets.address(i * V),
                       taps + p * params.indices.stride_h + q * params.indices.stride_w + lane * V);
    }
  } else {
    const int64_t total = static_cast<int64_t>(params.channels) * windows;
    grads.fetch(params.input.data, total);
    offsets.fetch(params.indices.data, total);
  }
  ptx::cp_async_commit();
  for (int i = thread * 4; i < pixels * channels; i += threads * 4) {
    shared.sums.template store_vector<4>(i, Vector<float, 4>{{0, 0, 0, 0}});
  }
  ptx::cp_async_wait<0>();
  __syncthreads();

  if (thread < present) {
    const int first = kNhwc ? thread : thread * windows;
    const int step = kNhwc ? channels : 1;
    scatter_plane(
        params, shared.sums, thread, channels,
        [&](int window) { return to_accumulator(grads.load(first + window * step)); },
        [&](int window) { return static_cast<int>(offsets.load(first + window * step)); });
  }
  __syncthreads();

  if constexpr (kNhwc) {
    T* dx = static_cast<T*>(params.output.data) + n * params.output.stride_n + c_first;
    for (int i = thread; i < pixels * params.by_lanes.divisor(); i += threads) {
      int lane, w;
      const int h = params.by_width.divide(params.by_lanes.divide(i, lane), w);
      if (lane * V >= present) continue;
      Vector<T, V> rounded;
#pragma unroll
      for (int g = 0; g < V; g += 4) {
        const Vector<float, 4> sums = shared.sums.template load_vector<4>(i * V + g);
#pragma unroll
        for (int j = 0; j < 4; ++j) rounded[g + j] = from_accumulator<T>(sums[j]);
      }
      store_global<V>(dx + h * params.output.stride_h + w * params.output.stride_w + lane * V, rounded);
    }
  } else {
    // A run that starts at a whole vector, since block_channels is a multiple of V.
    T* dx = static_cast<T*>(params.output.data) + static_cast<int64_t>(c_first) * pixels;
    const int run = present * pixels;
    for (int i = thread * V; i < run; i += threads * V) {
      int pixel;
      int plane = params.by_pixels.divide(i, pixel);
      Vector<T, V> rounded;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (i + j < run) rounded[j] = from_accumulator<T>(shared.sums.load(pixel * channels + plane));
        if (++pixel == pixels) {
          pixel = 0;
          ++plane;
        }
      }
      if (i + V <= run) {
        store_global<V>(dx + i, rounded);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (i + j < run) store_global(dx + i + j, rounded[j]);
        }
      }
    }
  }
}

}  // namespace fastcnn
