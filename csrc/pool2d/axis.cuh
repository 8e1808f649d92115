// The arithmetic of one pooled axis: which inputs a window holds, and which windows hold an input. Every pool
// kernel asks here, so sliding, dilated, padded and adaptive windows share all kernels.
// 32-bit throughout: the bindings hold input + 2 * pad below 2^31. Adaptive products may be larger, and then
// take the 64-bit way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/fastdiv.h"
#include "pool2d/problem.h"

namespace fastcnn {

// The part of a window that lies inside the input: taps first .. first + count - 1, at start, start +
// dilation, ...
struct PoolWindow {
  int first;
  int count;
  int start;
};

// Windows begin .. end - 1.
struct PoolWindows {
  int begin;
  int end;
};

class PoolAxis {
 public:
  PoolAxis() = default;

  static PoolAxis sliding(int input, int output, int kernel, int stride, int pad, int dilation) {
    PoolAxis axis(input, output);
    const int64_t extent = static_cast<int64_t>(dilation) * (kernel - 1) + 1;
    axis.kernel_ = kernel;
    axis.stride_ = stride;
    axis.pad_ = pad;
    axis.dilation_ = dilation;
    axis.extent_ = static_cast<int>(extent < INT32_MAX ? extent : INT32_MAX);
    axis.by_stride_ = FastDiv(stride);
    axis.by_dilation_ = FastDiv(dilation);
    return axis;
  }

  static PoolAxis adaptive(int input, int output) {
    PoolAxis axis(input, output);
    axis.adaptive_ = true;
    axis.wide_ = (static_cast<int64_t>(input) + 1) * (static_cast<int64_t>(output) + 1) > INT32_MAX;
    axis.by_input_ = FastDiv(input > 0 ? input : 1);
    axis.by_output_ = FastDiv(output > 0 ? output : 1);
    return axis;
  }

  __host__ __device__ int input() const { return input_; }
  __host__ __device__ int output() const { return output_; }
  __host__ __device__ int kernel() const { return kernel_; }
  __host__ __device__ int pad() const { return pad_; }
  __host__ __device__ int dilation() const { return dilation_; }

  // A window without any valid tap (a dilated one can step over a short input) has count 0 and starts where
  // its first tap right of the left padding would be: torch reports that place too.
  __device__ PoolWindow window(int output_index) const {
    if (adaptive_) {
      const int start = scale_down(output_index, input_, output_, by_output_);
      return {0, scale_up(output_index + 1, input_, output_, by_output_) - start, start};
    }
    const int origin = output_index * stride_ - pad_;
    const int first = origin < 0 ? divide_by_dilation(-origin - 1) + 1 : 0;
    const int end = min(kernel_, divide_by_dilation(input_ - origin - 1) + 1);
    return {first, max(end - first, 0), origin + first * dilation_};
  }

  // The windows whose reach includes input_index; a dilated window among them may still step over it (see
  // tap).
  __device__ PoolWindows covering(int input_index) const {
    if (adaptive_) {
      return {scale_down(input_index, output_, input_, by_input_),
              scale_up(input_index + 1, output_, input_, by_input_)};
    }
    const int t = input_index + pad_;
    return {t < extent_ ? 0 : by_stride_.divide(t - extent_) + 1, min(by_stride_.divide(t) + 1, output_)};
  }

  // Which tap of a covering window input_index is, or -1 if the window steps over it. Adaptive windows skip
  // nothing, and nobody asks for their tap numbers: 0.
  __device__ int tap(int output_index, int input_index) const {
    if (adaptive_) return 0;
    const int t = input_index + pad_ - output_index * stride_;
    if (dilation_ == 1) return t;
    int remainder;
    const int quotient = by_dilation_.divide(t, remainder);
    return remainder == 0 ? quotient : -1;
  }

  // Whether any input_index, from an index tensor that may hold anything, is a tap of this window.
  __device__ bool holds(int output_index, int input_index) const {
    if (input_index < 0 || input_index >= input_) return false;
    const PoolWindows windows = covering(input_index);
    return output_index >= windows.begin && output_index < windows.end && tap(output_index, input_index) >= 0;
  }

  // Where a tap number, which may be any, lies in the input; -1 if it is not a valid tap of this window.
  __device__ int position(int output_index, int tap) const {
    const PoolWindow valid = window(output_index);
    if (tap < valid.first || tap - valid.first >= valid.count) return -1;
    return valid.start + (tap - valid.first) * dilation_;
  }

  // The window's length where padding counts: clipped to the padded input, which ceil mode can reach beyond.
  __device__ int padded_count(int output_index) const {
    return min(kernel_, input_ + 2 * pad_ - output_index * stride_);
  }

 private:
  PoolAxis(int input, int output) : input_(input), output_(output) {}

  __device__ int divide_by_dilation(int x) const { return dilation_ == 1 ? x : by_dilation_.divide(x); }

  // floor(i * numerator / denominator)
  __device__ int scale_down(int i, int numerator, int denominator, const FastDiv& by_denominator) const {
    if (wide_) return static_cast<int>(static_cast<int64_t>(i) * numerator / denominator);
    return by_denominator.divide(i * numerator);
  }
  // ceil(i * numerator / denominator)
  __device__ int scale_up(int i, int numerator, int denominator, const FastDiv& by_denominator) const {
    if (wide_) {
      return static_cast<int>((static_cast<int64_t>(i) * numerator + denominator - 1) / denominator);
    }
    return by_denominator.divide(i * numerator + denominator - 1);
  }

  int input_ = 0;
  int output_ = 0;
  int kernel_ = 1;
  int stride_ = 1;
  int pad_ = 0;
  int dilation_ = 1;
  int extent_ = 1;  // of a whole window, from first to last tap
  bool adaptive_ = false;
  bool wide_ = false;
  FastDiv by_stride_;
  FastDiv by_dilation_;
  FastDiv by_input_;
  FastDiv by_output_;
};

inline PoolAxis pool_rows(const Pool2dProblem& problem) {
  if (problem.adaptive) return PoolAxis::adaptive(problem.h, problem.p);
  return PoolAxis::sliding(problem.h, problem.p, problem.kernel_h, problem.stride_h, problem.pad_h,
                           problem.dilation_h);
}

inline PoolAxis pool_columns(const Pool2dProblem& problem) {
  if (problem.adaptive) return PoolAxis::adaptive(problem.w, problem.q);
  return PoolAxis::sliding(problem.w, problem.q, problem.kernel_w, problem.stride_w, problem.pad_w,
                           problem.dilation_w);
}

}  // namespace fastcnn
