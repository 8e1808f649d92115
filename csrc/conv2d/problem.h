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

// Applied to the finished sum: torch's relu, sigmoid, tanh, silu, gelu (by erf), hardswish, leaky_relu.
enum class Activation : int32_t { kNone, kRelu, kSigmoid, kTanh, kSilu, kGelu, kHardswish, kLeakyRelu };

// Whether the derivative is taken at the activation's result. For the others it is taken at what went in.
inline bool derived_from_output(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kSigmoid ||
         activation == Activation::kTanh || activation == Activation::kLeakyRelu;
}

// leaky_relu's slope for negative values, not negative itself: in both accumulators, so that kernels convert
// nothing.
struct NegativeSlope {
  float single;
  double wide;

  __host__ __device__ NegativeSlope(double slope = 0) : single(static_cast<float>(slope)), wide(slope) {}
  template <class Acc>
  __host__ __device__ Acc in() const {
    return sizeof(Acc) == 8 ? static_cast<Acc>(wide) : static_cast<Acc>(single);
  }
};

// What fprop does to a finished sum: y = activation(sum + bias + residual). Null pointers are left out.
// residual and preactivation lie as the output does: the same strides, and as well aligned.
struct Epilogue {
  const void* bias = nullptr;      // K contiguous elements of dtype
  const void* residual = nullptr;  // N K P Q
  void* preactivation = nullptr;   // N K P Q: what the activation was applied to, rounded, for the backward
  Activation activation = Activation::kNone;
  NegativeSlope negative_slope;
};

// What dgrad and wgrad do to an element of the output gradient as they load it: dy becomes
// dy * activation'(saved), rounded as a pass of its own would round it. saved lies as grad does; it is the
// output or the preactivation, as derived_from_output says. Null: dy stays.
struct GradActivation {
  const void* saved = nullptr;
  Activation activation = Activation::kNone;
  NegativeSlope negative_slope;
};

// One struct for the three passes; `output` is what the pass writes.
//   fprop: output(y) = epilogue(input(x) * weight)
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
  void* workspace = nullptr;
  Epilogue epilogue;               // fprop
  GradActivation grad_activation;  // dgrad, wgrad
  void* bias_grad = nullptr;       // wgrad: K contiguous elements of dtype, written too; or null
};

}  // namespace fastcnn
