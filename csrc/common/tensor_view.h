// What kernels know of a 4-D tensor: where it lies and how far its elements are apart.
#pragma once

#include <cstdint>

namespace fastcnn {

// Logical order N C H W whatever the memory order; strides in elements, any value (0 and overlapping views
// included).
struct TensorView {
  void* data = nullptr;
  int64_t stride_n = 0;
  int64_t stride_c = 0;
  int64_t stride_h = 0;
  int64_t stride_w = 0;
};

}  // namespace fastcnn
