// The fixed-order second pass of split reductions: adds partial sums and rounds once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/tensor_view.h"

namespace fastcnn {

// partials: [splits][n][c][h][w] dense, fp32 (fp64 for fp64 outputs). output: any strides, element type
// dtype. `tail` further partials after each split's go to tail_output, contiguous.
struct SplitSumParams {
  const void* partials = nullptr;
  TensorView output;
  DType dtype = DType::kFloat32;
  int splits = 1;
  int n = 1, c = 1, h = 1, w = 1;
  void* tail_output = nullptr;
  int tail = 0;
};

void launch_split_sum(const SplitSumParams& params, cudaStream_t stream);

}  // namespace fastcnn
