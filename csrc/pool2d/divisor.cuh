// What the sum of an average window is divided by. Params: anything with the axes and torch's two options.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pool2d/axis.cuh"
#include "pool2d/problem.h"

namespace fastcnn {

// A window's length along one axis, as its divisor counts it.
template <class Params>
__device__ inline int divisor_length(const Params& params, const PoolAxis& axis, int output_index) {
  if (params.count_include_pad && !params.adaptive) return axis.padded_count(output_index);
  return axis.window(output_index).count;
}

template <class Acc, class Params>
__device__ inline Acc divisor(const Params& params, int p, int q) {
  if (params.divisor_override != 0) return static_cast<Acc>(params.divisor_override);
  return static_cast<Acc>(static_cast<int64_t>(divisor_length(params, params.rows, p)) *
                          divisor_length(params, params.columns, q));
}

// The divisor that all windows of a sliding pool share, or 0 where they differ.
inline int64_t common_divisor(const Pool2dProblem& problem) {
  if (problem.divisor_override != 0) return problem.divisor_override;
  const auto whole = [&](int input, int output, int kernel, int stride, int pad) {
    if (!problem.count_include_pad && pad > 0) return false;
    return (int64_t{output} - 1) * stride + kernel <= int64_t{input} + 2 * int64_t{pad};
  };
  if (problem.adaptive || !whole(problem.h, problem.p, problem.kernel_h, problem.stride_h, problem.pad_h) ||
      !whole(problem.w, problem.q, problem.kernel_w, problem.stride_w, problem.pad_w)) {
    return 0;
  }
  return int64_t{problem.kernel_h} * problem.kernel_w;
}

}  // namespace fastcnn
