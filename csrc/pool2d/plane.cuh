// What the plane kernels share (max pooling, large windows that overlap): a block takes whole planes of a few
// channels, because a window of k x k meets most of a small plane: 5x5 to 13x13 windows on 20x20 pixels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "common/tensor_view.h"
#include "pool2d/axis.cuh"
#include "pool2d/plan.h"
#include "pool2d/problem.h"
#include "ptx/cp_async.cuh"

namespace fastcnn {

struct PlaneParams {
  TensorView input;
  TensorView indices;
  TensorView output;
  PoolAxis rows;
  PoolAxis columns;
  Pool2dIndex index = Pool2dIndex::kNone;
  int channels = 0;        // NHWC: of the tensor; NCHW: planes of the tensor
  int block_channels = 0;  // that a block takes
  FastDiv by_chunks;       // NHWC: parts of the channels
  FastDiv by_lanes;        // NHWC: vectors of block_channels
  FastDiv by_width;        // of the pool's input
  FastDiv by_outputs;      // columns of the pool's output
  FastDiv by_kernel_w;
  FastDiv by_pixels;  // NCHW: of the pool's input
  int stride_h = 1, stride_w = 1;
};

}  // namespace fastcnn
