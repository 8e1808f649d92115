// Host twin of the CUDA built-ins that kernels use.
#pragma once

#include <math.h>

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/engine.h"
#include "emulator/warp.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)

#define FASTCNN_VECTOR_TYPES(T, name)                          \
  struct alignas(1 * sizeof(T)) name##1 {                      \
    T x;                                                       \
  };                                                           \
  struct alignas(2 * sizeof(T)) name##2 {                      \
    T x, y;                                                    \
  };                                                           \
  struct name##3 {                                             \
    T x, y, z;                                                 \
  };                                                           \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { \
    T x, y, z, w;                                              \
  };                                                           \
  inline name##2 make_##name##2(T x, T y) {                    \
    return {x, y};                                             \
  }                                                            \
  inline name##3 make_##name##3(T x, T y, T z) {               \
    return {x, y, z};                                          \
  }                                                            \
  inline name##4 make_##name##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                       \
  }

FASTCNN_VECTOR_TYPES(signed char, char)
FASTCNN_VECTOR_TYPES(unsigned char, uchar)
FASTCNN_VECTOR_TYPES(short, short)
FASTCNN_VECTOR_TYPES(unsigned short, ushort)
FASTCNN_VECTOR_TYPES(int, int)
FASTCNN_VECTOR_TYPES(unsigned, uint)
FASTCNN_VECTOR_TYPES(long long, longlong)
FASTCNN_VECTOR_TYPES(float, float)
FASTCNN_VECTOR_TYPES(double, double)
#undef FASTCNN_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Those of the thread that runs now.
#pragma GCC visibility push(hidden)
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
#pragma GCC visibility pop
inline constexpr int warpSize = 32;

// Launches run at once, so a stream means nothing, and failures are exceptions.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}

inline void __syncthreads(fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  fastcnn::emulator::barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate,
                               fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::barrier("__syncthreads_count", predicate != 0, where);
}
inline int __syncthreads_or(int predicate,
                            fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::barrier("__syncthreads_or", predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate,
                             fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::barrier("__syncthreads_and", predicate == 0, where) == 0;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= ((x >> i) & 1u) << (31 - i);
  return result;
}

inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline float rsqrt(float x) {
  return rsqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}

template <class To, class From>
inline To fastcnn_same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline int __float_as_int(float x) {
  return fastcnn_same_bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return fastcnn_same_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
  return fastcnn_same_bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
  return fastcnn_same_bits<float>(x);
}
inline long long __double_as_longlong(double x) {
  return fastcnn_same_bits<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return fastcnn_same_bits<double>(x);
}

// As CUDA's: a NaN operand of the floating-point forms gives the other operand.
#define FASTCNN_MIN_MAX(T) \
  inline T min(T a, T b) { \
    return b < a ? b : a;  \
  }                        \
  inline T max(T a, T b) { \
    return a < b ? b : a;  \
  }
FASTCNN_MIN_MAX(int)
FASTCNN_MIN_MAX(unsigned)
FASTCNN_MIN_MAX(long)
FASTCNN_MIN_MAX(unsigned long)
FASTCNN_MIN_MAX(long long)
FASTCNN_MIN_MAX(unsigned long long)
#undef FASTCNN_MIN_MAX
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}
