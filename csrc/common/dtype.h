// Element types of the kernels, their accumulators, and the step from a run-time DType to a compile-time
// type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <utility>

namespace fastcnn {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat64:
      return "float64";
  }
  return "unknown";
}

inline int dtype_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : (dtype == DType::kFloat32 ? 4 : 2);
}

// Sums are kept in fp32, in fp64 for fp64 tensors.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

__host__ __device__ inline float to_accumulator(float x) {
  return x;
}
__host__ __device__ inline double to_accumulator(double x) {
  return x;
}
__host__ __device__ inline float to_accumulator(__half x) {
  return __half2float(x);
}
__host__ __device__ inline float to_accumulator(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Rounds to nearest even, once: the only rounding of a result.
template <class T>
__host__ __device__ inline T from_accumulator(accumulator_t<T> x);
template <>
__host__ __device__ inline float from_accumulator<float>(float x) {
  return x;
}
template <>
__host__ __device__ inline double from_accumulator<double>(double x) {
  return x;
}
template <>
__host__ __device__ inline __half from_accumulator<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__host__ __device__ inline __nv_bfloat16 from_accumulator<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>{}) with the element type that dtype names.
template <class F>
decltype(auto) visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return std::forward<F>(f)(TypeTag<float>{});
    case DType::kFloat16:
      return std::forward<F>(f)(TypeTag<__half>{});
    case DType::kBFloat16:
      return std::forward<F>(f)(TypeTag<__nv_bfloat16>{});
    case DType::kFloat64:
      return std::forward<F>(f)(TypeTag<double>{});
  }
  throw std::logic_error("fastcnn: unknown DType");
}

// The same without float64, for kernels that are not built for it.
template <class F>
decltype(auto) visit_narrow_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return std::forward<F>(f)(TypeTag<float>{});
    case DType::kFloat16:
      return std::forward<F>(f)(TypeTag<__half>{});
    case DType::kBFloat16:
      return std::forward<F>(f)(TypeTag<__nv_bfloat16>{});
    case DType::kFloat64:
      break;
  }
  throw std::logic_error("fastcnn: this kernel is not built for float64");
}

}  // namespace fastcnn
