// Gradient of the bias: the sum of grad_output over images and pixels, per channel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/chip.h"
#include "common/dtype.h"
#include "common/tensor_view.h"
#include "conv2d/launch_size.h"
#include "conv2d/thread_tile.h"

namespace fastcnn {

struct BiasGradParams {
  TensorView grad;  // N K P Q, any strides
  int n = 0, k = 0, p = 0, q = 0;
  DType dtype = DType::kFloat32;
  void* output = nullptr;  // K contiguous elements of dtype
  void* workspace = nullptr;
};

// A thread reads channel_vector neighbouring channels of a pixel (NHWC) or pixel_vector neighbouring pixels
// of a channel (NCHW) as one access; both are 1 for other strides.
struct BiasGradPlan {
  int channel_vector = 1;
  int pixel_vector = 1;
  // The image as the kernel walks it: rows that lie end to end are one row.
  int rows = 0;
  int columns = 0;  // in pixel vectors
  ThreadTile tile;
  int images_per_launch = 0;  // pixel indices of one launch fit 32 bits
  int launches = 0;
  int64_t grid = 0;          // blocks of a full launch
  int64_t split_pixels = 0;  // pixel vectors that one block sums
  int splits = 0;            // per launch
  size_t workspace_bytes = 0;
};

// launch_pixels bounds the pixel indices of one launch; tests lower it.
BiasGradPlan plan_bias_grad(const BiasGradParams& params, const Chip& chip,
                            int64_t launch_pixels = kLaunchPixels);

void launch_bias_grad(const BiasGradParams& params, const BiasGradPlan& plan, cudaStream_t stream);

}  // namespace fastcnn
