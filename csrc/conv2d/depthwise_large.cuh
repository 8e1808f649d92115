// Depthwise fprop and dgrad with R x S taps of any number at a step of one, any layout (depthwise_image.h has
// the problem): what the strips and tiles leave.
//
// Walk: a block takes planes (some channels of some images) or a tile of them. Its sources come once to
// shared memory as floats, with zeros beside them for padded columns; so do its channels' filters, which all
// its images share. A thread makes cells of 2 x 8 targets of one plane: it walks the source rows that the
// cell sees and, in each, eight taps at a time. 16 neighbouring sources in registers, of which the next eight
// taps reuse half, meet eight weights for each of the two rows. dgrad is fprop with its taps reversed;
// dilation splits an image into classes without it, in blocks of their own.
//
// Floor: bytes = source + target + filter once each; flops = 2*R*S per target. Read beyond it: halos where
// tiles meet, filters once for each block of images. Bound: the FMA pipes. Eight taps of a source row are 128
// FMAs for 2 16-byte loads of sources and 4 of weights, a load for 21 FMAs: by count 16 wavefronts of shared
// memory for the sources (lanes 32 bytes apart), 4 to 8 for the weights (one or two tap rows a warp), of the
// 32 cycles that the FMAs take. By the machine code (sm_90a) 256 of the 279 instructions of 16 taps are FMAs.
// The last S % 8 taps take a branch each. Taps above and below the image are skipped, those beside it are
// products with zero: of 13 x 13 taps on 7 x 7 that is nearly half of the FMAs. Targets leave an element at a
// time: rare beside so many products, and neighbouring lanes or the next stores fill their sectors in L2.
// Registers (ptxas, the most of both architectures and all types): 72, three blocks of 256 threads an SM
// where shared memory allows them. Why floats: halves would be converted anew for each row of taps. Why 2 x
// 8: a cell of 4 x 8 would leave registers for two blocks. Where a weight of the block is not finite, targets
// go tap by tap and leave out the padding.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_axis.cuh"
#include "conv2d/depthwise_cell.cuh"
#include "conv2d/depthwise_image.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"

namespace fastcnn {

template <int kFloats>
struct DepthwiseLargeShared {
  SharedArray<float, kFloats> floats;
};

// A block's channels, images and targets.
struct DepthwiseLargePlace {
  int channel, channels;
  DepthwiseSpan columns, rows;
  int image, images;
  int row_end, column_end;  // one past the last sources that exist and are seen

  __device__ DepthwiseLargePlace(const DepthwiseLargeParams& params, int chunk, int rest)
      : channel(chunk * params.block_channels.divisor()),
        channels(min(params.block_channels.divisor(), params.image.channels - channel)),
        columns(params.image.columns, params.image.columns.block, rest),
        rows(params.image.rows, params.image.rows.block, rest),
        image(rest * params.block_images),
        images(min(params.block_images, params.images - image)),
        row_end(min(rows.high, rows.count + params.kernel_rows - 1)),
        column_end(min(columns.high, columns.count + params.kernel_columns - 1)) {}
};

// Brings the filters, as fprop has their taps. Returns whether they are all finite, as far as this thread
// saw.
template <class T, int kFloats>
__device__ inline bool fetch_filters(DepthwiseLargeShared<kFloats>& shared,
                                     const DepthwiseLargeParams& params, const DepthwiseLargePlace& place) {
  const TensorView& view = params.image.weight;
  const T* const data = static_cast<const T*>(view.data) + place.channel * view.stride_n;
  float zero = 0;  // NaN where a weight is not finite
  for (int i = static_cast<int>(threadIdx.x); i < place.channels * params.taps.divisor();
       i += static_cast<int>(blockDim.x)) {
    int tap, s;
    const int channel = params.taps.divide(i, tap);
    int r = params.tap_columns.divide(tap, s);
    const float weight =
        to_accumulator(load_global(data + channel * view.stride_n + r * view.stride_h + s * view.stride_w));
    zero += weight * 0.0f;
    if (params.image.flip) {
      r = params.kernel_rows - 1 - r;
      s = params.kernel_columns - 1 - s;
    }
    shared.floats.store(channel * params.weight_plane + r * params.weight_pitch + s, weight);
  }
  return zero == 0;
}

// Brings the sources that exist: V channels and kRows rows a thread under way.
template <class T, int V, int kRows, bool kActivation, int kFloats>
__device__ inline void fetch_sources(DepthwiseLargeShared<kFloats>& shared,
                                     const DepthwiseLargeParams& params, const DepthwiseLargePlace& place) {
  const TensorView& view = params.image.source;
  const T* const data = static_cast<const T*>(view.data);
  const int planes = params.block_images * params.block_channels.divisor();
  const int items = planes / V * params.fetch_columns.divisor() * params.fetch_rows;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    int vector, column, channel, part;
    if (params.channels_fast) {
      part = params.fetch_columns.divide(params.fetch_vectors.divide(item, vector), column);
    } else {
      part = params.fetch_vectors.divide(params.fetch_columns.divide(item, column), vector);
    }
    const int image = params.block_channels.divide(vector * V, channel);
    column += max(place.columns.low, 0);
    if (column >= place.column_end || image >= place.images || channel >= place.channels) continue;
    const int64_t step_h = view.stride_h * params.image.rows.dilation.divisor();
    int64_t offset =
        (place.image + image) * view.stride_n + (place.channel + channel) * view.stride_c +
        place.rows.origin * view.stride_h + (place.rows.low + part) * step_h +
        (place.columns.origin + column * params.image.columns.dilation.divisor()) * view.stride_w;
    const int64_t step = params.fetch_rows * step_h;
    int to = params.tile + vector * V * params.plane + part * params.pitch + column;
    for (int row = place.rows.low + part; row < place.row_end; row += kRows * params.fetch_rows) {
      Vector<T, V> loaded[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool inside = row + i * params.fetch_rows < place.row_end;
        if constexpr (kActivation) {
          loaded[i] = load_grad_if<V>(inside, params.image.grad_activation, data, offset + i * step);
        } else {
          loaded[i] = load_global_if<V>(inside, data + offset + i * step);
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (row + i * params.fetch_rows >= place.row_end) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          shared.floats.store(to + v * params.plane, to_accumulator(loaded[i][v]));
        }
        to += params.fetch_rows * params.pitch;
      }
      offset += kRows * step;
    }
  }
}

// The sum of one target over taps inside the image alone: rows by columns of them, from x_at and w_at on.
template <int kFloats>
[[gnu::noinline]] __device__ float careful_large_sum(const DepthwiseLargeShared<kFloats>& shared, int x_at,
                                                     int w_at, int pitch, int weight_pitch, int rows,
                                                     int columns) {
  float sum = 0;
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
#pragma unroll 1
    for (int s = 0; s < columns; ++s) {
      sum += shared.floats.load(x_at + r * pitch + s) * shared.floats.load(w_at + r * weight_pitch + s);
    }
  }
  return sum;
}

template <class T, int V, int kFloats>
__global__ void __launch_bounds__(kDepthwiseLargeThreads, 3)
    depthwise_large(const __grid_constant__ DepthwiseLargeParams params) {
  constexpr int kColumns = kDepthwiseCellColumns;
  auto& shared = shared_memory<DepthwiseLargeShared<kFloats>>();
  const DepthwiseImageParams& image = params.image;
  int chunk;
  const int rest = params.chunks.divide(static_cast<int>(blockIdx.x), chunk);
  const DepthwiseLargePlace place(params, chunk, rest);
  if (place.rows.count <= 0 || place.columns.count <= 0) return;

  for (int i = 4 * static_cast<int>(threadIdx.x); i < params.floats; i += 4 * static_cast<int>(blockDim.x)) {
    shared.floats.template store_vector<4>(i, Vector<float, 4>{});
  }
  __syncthreads();
  const bool finite = fetch_filters<T>(shared, params, place);
  if (image.grad_activation.saved == nullptr) {
    fetch_sources<T, V, 4, false>(shared, params, place);
  } else {
    fetch_sources<T, V, 1, true>(shared, params, place);
  }
  const bool careful = __syncthreads_or(!finite) != 0;

  for (int cell = static_cast<int>(threadIdx.x); cell < params.cells; cell += static_cast<int>(blockDim.x)) {
    int inner, middle, channel;
    const int outer = params.cells_middle.divide(params.cells_inner.divide(cell, inner), middle);
    const int plane = params.channels_fast ? inner : outer;
    const int column = (params.channels_fast ? middle : inner) * kColumns;
    const int row = (params.channels_fast ? outer : middle) * kDepthwiseCellRows;
    const int n = params.block_channels.divide(plane, channel);
    if (n >= place.images || channel >= place.channels || row >= place.rows.count ||
        column >= place.columns.count) {
      continue;
    }
    const int tile = params.tile + plane * params.plane, weight = channel * params.weight_plane;
    float sum[kDepthwiseCellRows][kColumns] = {};
    if (!careful) {
      const int below = row - place.rows.low;
      add_to_cell(shared.floats, tile + below * params.pitch + column, params.pitch, weight,
                  params.weight_pitch, max(-below, 0), min(place.row_end - row, params.kernel_rows + 1),
                  params.kernel_rows, params.kernel_columns, sum);
    } else {
#pragma unroll
      for (int i = 0; i < kDepthwiseCellRows * kColumns; ++i) {
        const int p = row + i / kColumns, q = column + i % kColumns;
        const int r = max(place.rows.low - p, 0), s = max(place.columns.low - q, 0);
        sum[i / kColumns][i % kColumns] =
            p < place.rows.count && q < place.columns.count
                ? careful_large_sum(shared, tile + (p + r - place.rows.low) * params.pitch + q + s,
                                    weight + r * params.weight_pitch + s, params.pitch, params.weight_pitch,
                                    min(place.rows.high - p, params.kernel_rows) - r,
                                    min(place.columns.high - q, params.kernel_columns) - s)
                : 0.0f;
      }
    }

    const TensorView& view = image.target;
    const int k = place.channel + channel;
    const float bias[1] = {load_bias<T>(image.epilogue, k)};
    const int64_t row_step = image.rows.classes * view.stride_h;
    const int64_t column_step = image.columns.classes * view.stride_w;
    int64_t offset = (place.image + n) * view.stride_n + k * view.stride_c +
                     place.rows.target * view.stride_h + row * row_step +
                     place.columns.target * view.stride_w + column * column_step;
#pragma unroll
    for (int i = 0; i < kDepthwiseCellRows; ++i, offset += row_step) {
      if (row + i >= place.rows.count) continue;
#pragma unroll
      for (int u = 0; u < kColumns; ++u) {
        if (column + u >= place.columns.count) continue;
        const int64_t at = offset + u * column_step;
        const float one[1] = {sum[i][u]};
        store_global<1>(static_cast<T*>(image.target.data) + at, finish<T>(image.epilogue, one, bias, at));
      }
    }
  }
}

template <class T, int V, int kFloats>
void launch_depthwise_large_kernel(const DepthwiseLargeParams& params, const DepthwiseImagePlan& plan,
                                   cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(DepthwiseLargeShared<kFloats>);
  config.stream = stream;
  launch(("conv2d::" + plan.kernel).c_str(), depthwise_large<T, V, kFloats>, config, params);
}

template <class T>
void launch_depthwise_large(const DepthwiseLargeParams& params, const DepthwiseImagePlan& plan,
                            cudaStream_t stream) {
  const bool small = params.floats <= kDepthwiseLargeFloats[0];
  if (params.vector == 4) {
    const auto start = small ? launch_depthwise_large_kernel<T, 4, kDepthwiseLargeFloats[0]>
                             : launch_depthwise_large_kernel<T, 4, kDepthwiseLargeFloats[1]>;
    return start(params, plan, stream);
  }
  const auto start = small ? launch_depthwise_large_kernel<T, 1, kDepthwiseLargeFloats[0]>
                           : launch_depthwise_large_kernel<T, 1, kDepthwiseLargeFloats[1]>;
  start(params, plan, stream);
}

}  // namespace fastcnn
