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

// Whether `vector` channels of the tensor can be moved as one access: they lie side by side, and every step
// to another pixel or image keeps the access aligned. Along an axis of one element the stride is never
// walked.
inline bool channels_align(const TensorView& view, int n, int h, int w, int vector, int element_bytes) {
  const auto aligned = [&](int64_t stride, int extent) { return extent <= 1 || stride % vector == 0; };
  const int access_bytes = vector * element_bytes < 16 ? vector * element_bytes : 16;
  return view.stride_c == 1 && aligned(view.stride_n, n) && aligned(view.stride_h, h) &&
         aligned(view.stride_w, w) &&
         reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(access_bytes) == 0;
}

}  // namespace fastcnn
