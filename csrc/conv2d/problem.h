// A 2-D convolution as numbers, and the parameter structs that travel to the kernels.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/tensor_view.h"

namespace fastcnn {

// input N C H W, weight K C/groups R S, output N K P Q with P = (H + pad_top + pad_bottom - dilation_h*(R-1)
// - 1)/stride_h + 1. The bottom and right padding only decide P and Q, which are stored.
struct Conv2dProblem {
  int n = 0, c = 0, h = 0, w = 0;
  int k = 0, r = 0, s = 0;
  int p = 0, q = 0;
  int stride_h = 1, stride_w = 1;
  int pad_top = 0, pad_left = 0;
  int dilation_h = 1, dilation_w = 1;
  int groups = 1;

  __host__ __device__ int channels_per_group() const { return c / groups; }
  __host__ __device__ int filters_per_group() const { return k / groups; }
  __host__ __device__ int64_t output_pixels() const { return static_cast<int64_t>(n) * p * q; }
  // Depthwise: every input channel has its own filters (a channel multiplier of k / c). One channel alone
  // counts with one filter; with more it is a product with enough columns.
  bool depthwise() const { return groups == c && (c > 1 || k == 1); }
};

enum class Conv2dPass : int32_t { kFprop, kDgrad, kWgrad };

enum class Activation : int32_t { kNone, kRelu, kSigmoid, kTanh };

// One struct for the three passes; `output` is what the pass writes.
//   fprop: output(y) = input(x) * weight + bias, then activation
//   dgrad: output(dx) = grad(dy) * weight
//   wgrad: output(dw) = input(x), grad(dy); `workspace` holds fp32 (fp64) partial sums of the splits
// A weight's TensorView reads N C H W as K C/groups R S.
struct Conv2dParams {
  Conv2dProblem problem;
  DType dtype = DType::kFloat32;
  TensorView input;
  TensorView weight;
  TensorView grad;
  TensorView output;
  const void* bias = nullptr;  // K contiguous elements of dtype, or null
  void* workspace = nullptr;
  Activation activation = Activation::kNone;
};

}  // namespace fastcnn
