// Max pooling of large windows that overlap, NHWC (plane.cuh).
//
// Tile: whole planes of `lanes` vectors of channels of one image, up to 32 KB, read once. Every row of the
// plane is first reduced along its columns (values and column taps stay in shared memory), then every window
// down its rows: 2 k steps an output and channel where a window has k * k taps. Row-major order makes both
// steps exact: of equal values the first row's first column wins, and the last NaN likewise.
// Floor, bytes per channel at e bytes an element: H * W * e read, P * Q * (e + 1) written. Nothing beyond it.
// Arithmetic per output and channel, H * W near P * Q: 4 k comparisons and 4 k selections, half as many of
// 16-bit types. 13x13 windows are bound by it, 5x5 windows less so.
// Registers (ptxas, sm_90a): 46 to 48; 72 or 80 KB of shared memory, so two blocks an SM.
#pragma once

#include <cuda_runtime.h>

#include "pool2d/plane.cuh"
#include "pool2d/rolling.cuh"

namespace fastcnn {

template <class T>
struct PlaneFpropShared {
  static constexpr int kElements = kPlaneFpropBytes / static_cast<int>(sizeof(T));
  SharedArray<T, kElements> x;
  SharedArray<T, kElements> row_values;
  SharedArray<uint8_t, kElements> row_taps;
};
static_assert(sizeof(PlaneFpropShared<float>) == pool2d_plane_fprop_bytes(4));
static_assert(sizeof(PlaneFpropShared<__half>) == pool2d_plane_fprop_bytes(2));

template <class T>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    plane_max_fprop(const __grid_constant__ PlaneParams params) {
  constexpr int V = 16 / sizeof(T);
  using Part = typename PartOf<true, T, V>::type;
  auto& shared = shared_memory<PlaneFpropShared<T>>();

  int chunk;
  const int n = params.by_chunks.divide(static_cast<int>(blockIdx.x), chunk);
  const int lanes = params.by_lanes.divisor();
  const int c_first = chunk * params.block_channels;
  const int present = min(lanes, (params.channels - c_first) / V);
  const int height = params.rows.input();
  const int width = params.columns.input();
  const int outputs = params.columns.output();
  const int threads = static_cast<int>(blockDim.x);

  const T* from = static_cast<const T*>(params.input.data) + n * params.input.stride_n + c_first;
  for (int i = static_cast<int>(threadIdx.x); i < height * width * lanes; i += threads) {
    int lane, w;
    const int h = params.by_width.divide(params.by_lanes.divide(i, lane), w);
    if (lane < present) {
      ptx::cp_async<16>(shared.x.address(i * V),
                        from + h * params.input.stride_h + w * params.input.stride_w + lane * V);
    }
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();

  for (int i = static_cast<int>(threadIdx.x); i < height * outputs * lanes; i += threads) {
    int lane, q;
    const int h = params.by_outputs.divide(params.by_lanes.divide(i, lane), q);
    if (lane >= present) continue;
    const PoolWindow window = params.columns.window(q);
    Part row;
    row.clear(window.first);
    int at = ((h * width + window.start) * lanes + lane) * V;
    for (int s = 0; s < window.count; ++s) {
      row.take(shared.x.template load_vector<V>(at), window.first + s);
      at += params.columns.dilation() * lanes * V;
    }
    shared.row_values.template store_vector<V>(i * V, row.template rounded<T>());
    shared.row_taps.template store_vector<V>(i * V, row.tap_bytes());
  }
  __syncthreads();

  const int kernel = params.columns.kernel();
  for (int i = static_cast<int>(threadIdx.x); i < params.rows.output() * outputs * lanes; i += threads) {
    int lane, q;
    const int p = params.by_outputs.divide(params.by_lanes.divide(i, lane), q);
    if (lane >= present) continue;
    const PoolWindow window = params.rows.window(p);
    Part best;
    best.clear(window.first * kernel + params.columns.window(q).first);
    int at = ((window.start * outputs + q) * lanes + lane) * V;
    for (int r = 0; r < window.count; ++r) {
      best.take_bytes(shared.row_values.template load_vector<V>(at),
                      shared.row_taps.template load_vector<V>(at), (window.first + r) * kernel);
      at += params.rows.dilation() * outputs * lanes * V;
    }
    const int c = c_first + lane * V;
    store_global<V>(static_cast<T*>(params.output.data) + n * params.output.stride_n +
                        p * params.output.stride_h + q * params.output.stride_w + c,
                    best.template rounded<T>());
    if (params.index == Pool2dIndex::kUint8Offset) {
      store_global<V>(static_cast<uint8_t*>(params.indices.data) + n * params.indices.stride_n +
                          p * params.indices.stride_h + q * params.indices.stride_w + c,
                      best.tap_bytes());
    }
  }
}

}  // namespace fastcnn
