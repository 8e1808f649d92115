// Whether a tensor is one dense block of NCHW planes: what kernels that read runs of it by 16 bytes ask for.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

namespace fastcnn {

// Also that it starts at 16 bytes. Along an axis of one element the stride is never walked.
inline bool dense_planes(const TensorView& view, int n, int c, int h, int w) {
  const auto lies = [](int extent, int64_t stride, int64_t dense) { return extent <= 1 || stride == dense; };
  const int64_t plane = int64_t{h} * w;
  return lies(w, view.stride_w, 1) && lies(h, view.stride_h, w) && lies(c, view.stride_c, plane) &&
         lies(n, view.stride_n, plane * c) && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

}  // namespace fastcnn
