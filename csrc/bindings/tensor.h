// From torch::stable::Tensor to what kernels take: dtype, strides, layout; and the output tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/device.h"
#include "common/dtype.h"
#include "common/tensor_view.h"

namespace fastcnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Joins its arguments into the text of a RuntimeError. (STD_TORCH_CHECK would put our file name before it.)
template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::string text;
  const auto append = [&text](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (append(parts), ...);
  throw std::runtime_error(text);
}

inline std::string pair_text(int64_t h, int64_t w) {
  return "(" + std::to_string(h) + ", " + std::to_string(w) + ")";
}

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
  return text + "]";
}

inline DType dtype_of(const Tensor& tensor, const char* op, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      fail(op, ": ", argument, " must be float32, float16, bfloat16 or float64");
  }
}

inline ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ScalarType::Float;
    case DType::kFloat16:
      return ScalarType::Half;
    case DType::kBFloat16:
      return ScalarType::BFloat16;
    case DType::kFloat64:
      return ScalarType::Double;
  }
  throw std::logic_error("fastcnn: unknown DType");
}

inline void check_4d(const Tensor& tensor, const char* op, const char* argument, const char* dimensions) {
  if (tensor.dim() != 4) {
    fail(op, ": ", argument, " must have 4 dimensions (", dimensions, "), but has shape ",
         shape_text(tensor));
  }
}

inline void check_same_dtype(const Tensor& tensor, const char* argument, const Tensor& other,
                             const char* other_argument, const char* op) {
  if (tensor.scalar_type() != other.scalar_type()) {
    fail(op, ": ", argument, " and ", other_argument, " must have the same dtype, but they are ",
         dtype_name(dtype_of(tensor, op, argument)), " and ",
         dtype_name(dtype_of(other, op, other_argument)));
  }
}

inline void check_same_device(const Tensor& tensor, const char* argument, const Tensor& other,
                              const char* other_argument, const char* op) {
  if (tensor.is_cuda() != other.is_cuda() || tensor.get_device_index() != other.get_device_index()) {
    fail(op, ": ", argument, " and ", other_argument, " must be on the same device");
  }
}

// Kernels index a single dimension with 32 bits; whole tensors may be larger.
inline int checked_int(int64_t value, const char* op, const char* what) {
  if (value < INT32_MIN || value > INT32_MAX - 1024)
    fail(op, ": ", what, " is ", value, ", more than kernels can index");
  return static_cast<int>(value);
}

// ATen's rule (suggest_memory_format): true when the strides, dense or not, order the dimensions as N H W C.
inline bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t smallest = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < smallest) return false;
    if (d == 0 && smallest == strides[1]) return false;  // N111 with equal strides counts as N C H W
    smallest = strides[d];
    if (sizes[d] > 1) smallest *= sizes[d];
  }
  return true;
}

// A 4-D tensor as kernels see it.
inline TensorView view_of(const Tensor& tensor) {
  TensorView view;
  view.data = const_cast<void*>(tensor.const_data_ptr());
  const auto strides = tensor.strides();
  view.stride_n = strides[0];
  view.stride_c = strides[1];
  view.stride_h = strides[2];
  view.stride_w = strides[3];
  return view;
}

// Bytes from the first to the last element, which is what a strided view can touch.
inline size_t extent_bytes(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return static_cast<size_t>(last + 1) * tensor.element_size();
}

inline Tensor empty_strided(const Tensor& like, ScalarType dtype, const int64_t* sizes,
                            const int64_t* strides, int64_t ndim) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  // torch 2.11 keeps the reason to itself; with the sizes checked, memory is what can be missing.
  if (aoti_torch_empty_strided(ndim, sizes, strides, static_cast<int32_t>(dtype), device_type,
                               like.get_device_index(), &handle) != AOTI_TORCH_SUCCESS) {
    std::string shape;
    for (int64_t i = 0; i < ndim; ++i) shape += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
    fail(like.is_cuda() ? "CUDA out of memory: " : "out of memory: ",
         "torch could not allocate a tensor of size [", shape, "] for a result or workspace of fastcnn");
  }
  return Tensor(handle);
}

// A dense N C H W tensor, stored as N H W C if channels_last.
inline Tensor empty_image(const Tensor& like, ScalarType dtype, int64_t n, int64_t c, int64_t h, int64_t w,
                          bool channels_last) {
  const std::array<int64_t, 4> sizes{n, c, h, w};
  std::array<int64_t, 4> strides{h * w * c, 1, w * c, c};
  if (!channels_last) {
    // torch counts an empty dimension as one here, and as none in N H W C.
    const auto at_least_one = [](int64_t x) { return x > 1 ? x : 1; };
    const int64_t plane = at_least_one(h) * at_least_one(w);
    strides = {plane * at_least_one(c), plane, at_least_one(w), 1};
  }
  return empty_strided(like, dtype, sizes.data(), strides.data(), 4);
}

inline Tensor empty_vector(const Tensor& like, ScalarType dtype, int64_t length) {
  const int64_t stride = 1;
  return empty_strided(like, dtype, &length, &stride, 1);
}

// Names a tensor's buffer to the scope and gives its address.
inline const void* reading_data(DeviceScope& scope, const Tensor& tensor) {
  scope.may_read(tensor.const_data_ptr(), extent_bytes(tensor));
  return tensor.const_data_ptr();
}

// Names a tensor's buffer to the scope and gives its view.
inline TensorView reading(DeviceScope& scope, const Tensor& tensor) {
  scope.may_read(tensor.const_data_ptr(), extent_bytes(tensor));
  return view_of(tensor);
}
inline TensorView writing(DeviceScope& scope, const Tensor& tensor) {
  scope.may_write(tensor.const_data_ptr(), extent_bytes(tensor));
  return view_of(tensor);
}

}  // namespace fastcnn
