// Host twin of cuda_fp16.h: storage, conversions and comparisons of the float16 type. Arithmetic belongs in
// fp32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/float16.h"

struct __half {
  __half() = default;
  __half(float x) : bits_(fastcnn::emulator::float_to_half_bits(x)) {}
  operator float() const { return fastcnn::emulator::half_bits_to_float(bits_); }

  static __half from_bits(uint16_t bits) {
    __half x;
    x.bits_ = bits;
    return x;
  }
  uint16_t bits() const { return bits_; }

  // CUDA rounds each of these to 16 bits; no kernel needs them.
  friend void operator+(__half, __half) = delete;
  friend void operator-(__half, __half) = delete;
  friend void operator*(__half, __half) = delete;
  friend void operator/(__half, __half) = delete;

 private:
  uint16_t bits_;
};

struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) {
  return static_cast<float>(x);
}
inline __half __float2half(float x) {
  return __half(x);
}
inline __half __float2half_rn(float x) {
  return __half(x);
}
inline unsigned short __half_as_ushort(__half x) {
  return x.bits();
}
inline __half __ushort_as_half(unsigned short bits) {
  return __half::from_bits(bits);
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline float2 __half22float2(__half2 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
inline __half __low2half(__half2 v) {
  return v.x;
}
inline __half __high2half(__half2 v) {
  return v.y;
}
inline bool __hisnan(__half x) {
  return (x.bits() & 0x7FFFu) > 0x7C00u;
}
// Sixteen set bits for each half where the comparison holds: greater, which no NaN is; not equal, which a NaN
// is.
inline unsigned __hgt2_mask(__half2 a, __half2 b) {
  return (float(a.x) > float(b.x) ? 0xFFFFu : 0u) | (float(a.y) > float(b.y) ? 0xFFFF0000u : 0u);
}
inline unsigned __hneu2_mask(__half2 a, __half2 b) {
  return (float(a.x) != float(b.x) ? 0xFFFFu : 0u) | (float(a.y) != float(b.y) ? 0xFFFF0000u : 0u);
}
