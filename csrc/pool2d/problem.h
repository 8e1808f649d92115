// A 2-D pooling as numbers, and the call that travels from the bindings to a launcher.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/tensor_view.h"

namespace fastcnn {

// input N C H W, output N C P Q. Window (p, q) holds, clipped to the input,
//   sliding:  h = p * stride_h - pad_h + r * dilation_h for r in [0, kernel_h)
//   adaptive: h in [floor(p * H / P), ceil((p + 1) * H / P)); kernel, stride, pad and dilation are not looked
//   at
// and columns likewise. Ceil mode only decides P and Q, which are stored.
struct Pool2dProblem {
  int n = 0, c = 0, h = 0, w = 0;
  int p = 0, q = 0;
  bool adaptive = false;
  int kernel_h = 1, kernel_w = 1;
  int stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0;
  int dilation_h = 1, dilation_w = 1;
  // Averages only: what a window's sum is divided by.
  bool count_include_pad = true;
  int64_t divisor_override = 0;  // 0: none
};

enum class Pool2dOp : int32_t { kMaxFprop, kMaxBprop, kMaxGather, kAverageFprop, kAverageBprop };

// How a window's maximum is remembered: not at all, by its place in the window (r * kernel_w + s), or by its
// place in the input plane (h * W + w), which is torch's way.
enum class Pool2dIndex : int32_t { kNone, kUint8Offset, kInt32Offset, kInt64Flat };

// One struct for every pass; `output` is what the pass writes, dense in the format asked.
//   max fprop:      output (y), indices  from input (x)
//   max bprop:      output (dx)          from input (dy), indices
//   max gather:     output (y-shaped)    from input (x-shaped), indices
//   average fprop:  output (y)           from input (x)
//   average bprop:  output (dx)          from input (dy)
struct Pool2dCall {
  Pool2dProblem problem;
  Pool2dOp op = Pool2dOp::kMaxFprop;
  DType dtype = DType::kFloat32;
  Pool2dIndex index = Pool2dIndex::kNone;
  bool channels_last = false;  // the memory format of output
  TensorView input;
  TensorView indices;
  TensorView output;
};

// What a pass writes one element of per item: the planes of y, or for a bprop those of dx.
inline bool pool2d_walks_input(Pool2dOp op) {
  return op == Pool2dOp::kMaxBprop || op == Pool2dOp::kAverageBprop;
}

}  // namespace fastcnn
