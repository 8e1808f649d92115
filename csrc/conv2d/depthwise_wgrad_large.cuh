// Depthwise wgrad with many taps and one filter a channel: dw[c,r,s] = sum over n,p,q of
// x[n,c,p+r-pad,q+s-pad] * dy[n,c,p,q], where the stride is a multiple of the dilation, any layout.
//
// Walk: fprop with the roles changed. The taps of dw are the targets, x is the source and dy the filter,
// another one for each image; a stride splits the taps into classes that see pixels of their own, as dilation
// does in fprop (depthwise_image.h). A block keeps one class of all taps of a few channels in registers, in
// cells of 2 x 8 of one thread, and goes through its images: some of them, or some rows of dy of one and the
// rows of x that the taps reach, come to shared memory as floats, with zeros beside them for the padding.
// Threads that have the same cell take different images or different rows, and are added through shared
// memory when all is done; the splits are added by split_sum.
//
// Floor: bytes = x and dy once each; flops = 2*R*S per dy. Read beyond it: rows of x where strips of one
// plane meet; dy once for each class of a stride; partial sums, written and read once. NHWC: a block takes
// one to four channels of a sector, so that L2 gives a sector to several SMs. Bound: the FMA pipes. A cell
// takes 128 FMAs for six 16-byte loads of shared memory (depthwise_cell.cuh), 21 for a load, where the
// windows of the sweep have three to five. By the machine code (sm_90a) 256 of the 278 instructions of 16
// taps are FMAs. Cells leave out rows of dy whose taps lie above or below the image, and columns of dy, four
// at a time, that are beside it for all of the cell; taps past R and S, to whole cells, are FMAs for nothing.
// Registers (ptxas, the most of both architectures and all types): 78, three blocks of 256 threads an SM. Why
// stages are not brought while another one is summed: three blocks do that for each other, and a stage's sums
// take long. Why one to four channels: cells of more would not leave whole planes room in shared memory.
// Where dy is not finite, cells go one element of it at a time and leave out the padding.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_axis.cuh"
#include "conv2d/depthwise_cell.cuh"
#include "conv2d/depthwise_wgrad_large.h"
#include "conv2d/grad_activation.cuh"

namespace fastcnn::large_wgrad {

using Floats = SharedArray<float, kLargeWgradFloats>;
struct Shared {
  Floats floats;
};

inline constexpr int kCellRows = kDepthwiseCellRows, kCellColumns = kDepthwiseCellColumns;
inline constexpr int kSums = kCellRows * kCellColumns + 1;  // with the bias gradient's
using Cell = float[kCellRows][kCellColumns];

// A block's channels, taps and stages.
struct Block {
  int channel, channels;
  DepthwiseSpan columns, rows;
  int split;

  __device__ Block(const DepthwiseLargeWgradParams& params, int chunk, int rest)
      : channel(chunk * params.block_channels.divisor()),
        channels(min(params.block_channels.divisor(), params.channels - channel)),
        columns(params.columns, 0, rest),
        rows(params.rows, 0, rest),
        split(rest) {}
};

struct Stage {
  int image, images;
  int p, rows;        // of dy
  int x_low, x_high;  // sources: the first and the one past the last that its rows see

  __device__ Stage(const DepthwiseLargeWgradParams& params, const Block& block, int stage) {
    int strip;
    image = params.strips.divide(stage, strip) * params.stage_images;
    images = min(params.stage_images, params.images - image);
    p = strip * params.stage_rows.divisor();
    rows = min(params.stage_rows.divisor(), params.grad_rows - p);
    x_low = max(block.rows.low, p);
    x_high = min(block.rows.high, p + rows + block.rows.count - 1);
  }
};

// A thread's part of a block.
struct Worker {
  int channel, lane, cell, part;
  int row, column;  // of the taps

  __device__ explicit Worker(const DepthwiseLargeWgradParams& params) {
    const int rest =
        params.lanes.divide(params.block_channels.divide(static_cast<int>(threadIdx.x), channel), lane);
    part = params.cells.divide(rest, cell);
    row = params.cell_columns.divide(cell, column) * kCellRows;
    column *= kCellColumns;
  }
};

// Pixels of some images in a tensor, and where they go: planes [image][channel] from `to` on.
struct Box {
  const TensorView& view;
  int64_t offset, row_step, column_step;
  int images, rows, columns;
  FastDiv most_rows, most_columns;
  int to, plane, pitch;
};

// Brings a box of V channels a pixel. Whether all of them are finite, as far as this thread saw.
template <int V, bool kActivation, class T>
__device__ inline bool bring(Floats& floats, const Box& box, const GradActivation& activation) {
  // As many under way.
  constexpr int kItems = kActivation ? 1 : 4;
  const T* const data = static_cast<const T*>(box.view.data);
  const int items = box.images * box.most_rows.divisor() * box.most_columns.divisor();
  const int threads = static_cast<int>(blockDim.x);
  float zero = 0;  // NaN where an element is not finite
  for (int first = static_cast<int>(threadIdx.x); first < items; first += kItems * threads) {
    Vector<T, V> loaded[kItems];
    int to[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      int row, column;
      const int image = box.most_rows.divide(box.most_columns.divide(first + i * threads, column), row);
      const bool inside = image < box.images && row < box.rows && column < box.columns;
      to[i] = inside ? box.to + image * V * box.plane + row * box.pitch + column : -1;
      const int64_t from =
          box.offset + image * box.view.stride_n + row * box.row_step + column * box.column_step;
      if constexpr (kActivation) {
        loaded[i] = load_grad_if<V>(inside, activation, data, from);
      } else {
        loaded[i] = load_global_if<V>(inside, data + from);
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (to[i] < 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float value = to_accumulator(loaded[i][v]);
        zero += value * 0.0f;
        floats.store(to[i] + v * box.plane, value);
      }
    }
  }
  return zero == 0;
}

// Brings a stage. Whether its dy is finite, as far as this thread saw.
template <class T, int V>
__device__ inline bool bring_stage(Floats& floats, const DepthwiseLargeWgradParams& params,
                                   const Block& block, const Stage& stage) {
  const TensorView& x = params.x;
  const int dilation_h = params.rows.dilation.divisor(), dilation_w = params.columns.dilation.divisor();
  const int low = max(block.columns.low, 0);
  const Box sources{x,
                    stage.image * x.stride_n + block.channel * x.stride_c +
                        (block.rows.origin + int64_t{stage.x_low} * dilation_h) * x.stride_h +
                        (block.columns.origin + int64_t{low} * dilation_w) * x.stride_w,
                    dilation_h * x.stride_h,
                    dilation_w * x.stride_w,
                    stage.images,
                    stage.x_high - stage.x_low,
                    min(block.columns.high, params.grad_columns.divisor() + block.columns.count - 1) - low,
                    params.x_rows,
                    params.x_columns,
                    low,
                    params.x_plane,
                    params.x_pitch};
  bring<V, false, T>(floats, sources, params.activation);
  const TensorView& dy = params.dy;
  const Box grads{dy,
                  stage.image * dy.stride_n + block.channel * dy.stride_c + stage.p * dy.stride_h,
                  dy.stride_h,
                  dy.stride_w,
                  stage.images,
                  stage.rows,
                  params.grad_columns.divisor(),
                  params.stage_rows,
                  params.grad_columns,
                  params.dy_start,
                  params.dy_plane,
                  params.dy_pitch};
  if (params.activation.saved != nullptr) return bring<V, true, T>(floats, grads, params.activation);
  return bring<V, false, T>(floats, grads, params.activation);
}

template <class T>
__device__ inline bool bring_stage(Floats& floats, const DepthwiseLargeWgradParams& params,
                                   const Block& block, const Stage& stage) {
  switch (params.block_channels.divisor()) {
    case 4:
      return bring_stage<T, 4>(floats, params, block, stage);
    case 2:
      return bring_stage<T, 2>(floats, params, block, stage);
    default:
      return bring_stage<T, 1>(floats, params, block, stage);
  }
}

// Adds what rows p .. p + rows - 1 of a plane's dy, at dy_at, give to a cell.
__device__ inline void add_rows(const Floats& floats, const DepthwiseLargeWgradParams& params,
                                const Block& block, const Stage& stage, const Worker& worker, int x_at,
                                int dy_at, int p, int rows, bool careful, Cell& sum) {
  const int low = stage.x_low - p, high = stage.x_high - p;  // sources, counted from dy's first row
  const int grad_columns = params.grad_columns.divisor();
  x_at -= low * params.x_pitch;
  if (!careful) {
    const int q = max(block.columns.low - worker.column - (kCellColumns - 1), 0) & ~3;
    const int taps = min(grad_columns, block.columns.high - worker.column) - q;
    if (taps <= 0) return;
    add_to_cell(floats, x_at + worker.row * params.x_pitch + worker.column + q, params.x_pitch, dy_at + q,
                params.dy_pitch, max(low - worker.row, 0), min(high - worker.row, rows + 1), rows, taps, sum);
    return;
  }
#pragma unroll 1
  for (int j = 0; j < rows; ++j) {
#pragma unroll 1
    for (int q = 0; q < grad_columns; ++q) {
      const float grad = floats.load(dy_at + j * params.dy_pitch + q);
#pragma unroll
      for (int i = 0; i < kCellRows * kCellColumns; ++i) {
        const int row = worker.row + i / kCellColumns + j, column = worker.column + i % kCellColumns + q;
        if (row < low || row >= high || column < block.columns.low || column >= block.columns.high) continue;
        sum[i / kCellColumns][i % kCellColumns] += floats.load(x_at + row * params.x_pitch + column) * grad;
      }
    }
  }
}

// Adds the sums of the threads that share a cell, in a fixed order, and writes them: to the split's partial
// sums, or as results.
template <class T>
__device__ inline void store_sums(Floats& floats, const DepthwiseLargeWgradParams& params, const Block& block,
                                  const Cell& sum, float bias) {
  // An odd number: neighbouring sums of a thread lie in different banks.
  const int threads = static_cast<int>(blockDim.x), pitch = threads | 1;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums - 1; ++i) {
    floats.store(i * pitch + static_cast<int>(threadIdx.x), sum[i / kCellColumns][i % kCellColumns]);
  }
  floats.store((kSums - 1) * pitch + static_cast<int>(threadIdx.x), bias);
  __syncthreads();

  const int lanes = params.lanes.divisor(), cells = params.cells.divisor();
  const int channels = params.block_channels.divisor();
  // Of sum i of a channel's cells first to last - 1.
  const auto total = [&](int i, int channel, int first, int last) {
    float added = 0;
    for (int part = 0; part < params.parts; ++part) {
      for (int at = (part * cells + first) * lanes; at < (part * cells + last) * lanes; ++at) {
        added += floats.load(i * pitch + at * channels + channel);
      }
    }
    return added;
  };
  const int taps = params.kernel_rows * params.kernel_columns;
  const int64_t weights = int64_t{params.channels} * taps;
  float* const partials =
      params.partials == nullptr
          ? nullptr
          : params.partials + block.split * (weights + (params.bias_grad == nullptr ? 0 : params.channels));
  const TensorView& dw = params.output;
  const int block_taps = block.rows.count * block.columns.count;
  for (int i = static_cast<int>(threadIdx.x); i < block.channels * block_taps; i += threads) {
    const int channel = i / block_taps, row = i % block_taps / block.columns.count;
    const int column = i % block.columns.count;
    const int cell = row / kCellRows * params.cell_columns.divisor() + column / kCellColumns;
    const float value =
        total(row % kCellRows * kCellColumns + column % kCellColumns, channel, cell, cell + 1);
    const int r = block.rows.target + row * params.rows.classes;
    const int s = block.columns.target + column * params.columns.classes;
    const int k = block.channel + channel;
    if (partials == nullptr) {
      store_global(static_cast<T*>(dw.data) + k * dw.stride_n + r * dw.stride_h + s * dw.stride_w,
                   from_accumulator<T>(value));
    } else {
      store_global(partials + int64_t{k} * taps + r * params.kernel_columns + s, value);
    }
  }
  // All classes see all of dy: the first one has its sum.
  const int channel = static_cast<int>(threadIdx.x);
  if (params.bias_grad == nullptr || block.rows.target != 0 || block.columns.target != 0 ||
      channel >= block.channels) {
    return;
  }
  const float value = total(kSums - 1, channel, 0, cells);
  if (partials == nullptr) {
    store_global(static_cast<T*>(params.bias_grad) + block.channel + channel, from_accumulator<T>(value));
  } else {
    store_global(partials + weights + block.channel + channel, value);
  }
}

template <class T>
__global__ void __launch_bounds__(kLargeWgradThreads, 3)
    depthwise_wgrad_large(const __grid_constant__ DepthwiseLargeWgradParams params) {
  Floats& floats = shared_memory<Shared>().floats;
  int chunk;
  const int rest = params.chunks.divide(static_cast<int>(blockIdx.x), chunk);
  const Block block(params, chunk, rest);
  const Worker worker(params);
  const bool active = worker.part < params.parts && worker.channel < block.channels &&
                      worker.row < block.rows.count && worker.column < block.columns.count;

  for (int i = 4 * static_cast<int>(threadIdx.x); i < params.floats; i += 4 * static_cast<int>(blockDim.x)) {
    floats.template store_vector<4>(i, Vector<float, 4>{});
  }
  Cell sum = {};
  float bias = 0;
  const int begin = block.split * params.split_stages;
  const int end = min(begin + params.split_stages, params.stages);
  for (int at = begin; at < end; ++at) {
    const Stage stage(params, block, at);
    __syncthreads();
    const bool finite = bring_stage<T>(floats, params, block, stage);
    const bool careful = __syncthreads_or(!finite) != 0;
    const int first = worker.part * params.part_rows, rows = min(params.part_rows, stage.rows - first);
    if (!active || rows <= 0) continue;
    for (int image = worker.lane; image < stage.images; image += params.lanes.divisor()) {
      const int plane = image * params.block_channels.divisor() + worker.channel;
      const int dy_at = params.dy_start + plane * params.dy_plane + first * params.dy_pitch;
      add_rows(floats, params, block, stage, worker, plane * params.x_plane, dy_at, stage.p + first, rows,
               careful, sum);
      if (params.bias_grad == nullptr) continue;
      for (int i = worker.cell; i < rows * params.grad_columns.divisor(); i += params.cells.divisor()) {
        int q;
        const int p = params.grad_columns.divide(i, q);
        bias += floats.load(dy_at + p * params.dy_pitch + q);
      }
    }
  }
  store_sums<T>(floats, params, block, sum, bias);
}

}  // namespace fastcnn::large_wgrad

namespace fastcnn {

template <class T>
void launch_depthwise_large_wgrad(const DepthwiseLargeWgradParams& params,
                                  const DepthwiseLargeWgradPlan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(large_wgrad::Shared);
  config.stream = stream;
  launch("conv2d::depthwise_wgrad_large", large_wgrad::depthwise_wgrad_large<T>, config, params);
}

}  // namespace fastcnn
