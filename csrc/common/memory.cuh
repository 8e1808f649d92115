// Typed, explicitly wide loads and stores of global memory, predicated forms included.
// load_global<8>(half_pointer) is one 16-byte access; the pointer must be aligned to the access.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "ptx/global_memory.cuh"

namespace fastcnn {

// N elements that live in registers and move as one access of at most 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
  T value[N];
  __host__ __device__ T& operator[](int i) { return value[i]; }
  __host__ __device__ const T& operator[](int i) const { return value[i]; }
};

namespace detail {
template <class T, int N>
inline constexpr int access_bytes = N * sizeof(T) < 16 ? static_cast<int>(N * sizeof(T)) : 16;
template <class T, int N>
inline constexpr int access_count = static_cast<int>(N * sizeof(T)) / access_bytes<T, N>;
}  // namespace detail

template <int N, class T>
__device__ inline Vector<T, N> load_global(const T* pointer) {
  constexpr int kBytes = detail::access_bytes<T, N>;
  Vector<T, N> result;
#pragma unroll
  for (int i = 0; i < detail::access_count<T, N>; ++i) {
    const auto word = ptx::ld_global<kBytes>(reinterpret_cast<const char*>(pointer) + i * kBytes);
    memcpy(reinterpret_cast<char*>(&result) + i * kBytes, &word, kBytes);
  }
  return result;
}

// Zero bits (0.0 for every element type) where the predicate is false; the pointer is then not touched.
template <int N, class T>
__device__ inline Vector<T, N> load_global_if(bool predicate, const T* pointer) {
  Vector<T, N> result;
  if (predicate) {
    result = load_global<N>(pointer);
  } else {
    memset(&result, 0, sizeof(result));
  }
  return result;
}

template <int N, class T>
__device__ inline void store_global(T* pointer, const Vector<T, N>& values) {
  constexpr int kBytes = detail::access_bytes<T, N>;
#pragma unroll
  for (int i = 0; i < detail::access_count<T, N>; ++i) {
    ptx::word_t<kBytes> word;
    memcpy(&word, reinterpret_cast<const char*>(&values) + i * kBytes, kBytes);
    ptx::st_global<kBytes>(reinterpret_cast<char*>(pointer) + i * kBytes, word);
  }
}

template <int N, class T>
__device__ inline void store_global_if(bool predicate, T* pointer, const Vector<T, N>& values) {
  if (predicate) store_global<N>(pointer, values);
}

// The one-element forms.
template <class T>
__device__ inline T load_global(const T* pointer) {
  return load_global<1>(pointer)[0];
}
template <class T>
__device__ inline T load_global_if(bool predicate, const T* pointer) {
  return load_global_if<1>(predicate, pointer)[0];
}
template <class T>
__device__ inline void store_global(T* pointer, T value) {
  store_global<1>(pointer, Vector<T, 1>{{value}});
}

}  // namespace fastcnn
