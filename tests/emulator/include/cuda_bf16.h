// Host twin of cuda_bf16.h: storage, conversions and comparisons of the bfloat16 type. Arithmetic belongs in
// fp32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/float16.h"

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits_(fastcnn::emulator::float_to_bfloat16_bits(x)) {}
  operator float() const { return fastcnn::emulator::bfloat16_bits_to_float(bits_); }

  static __nv_bfloat16 from_bits(uint16_t bits) {
    __nv_bfloat16 x;
    x.bits_ = bits;
    return x;
  }
  uint16_t bits() const { return bits_; }

  // CUDA rounds each of these to 16 bits; no kernel needs them.
  friend void operator+(__nv_bfloat16, __nv_bfloat16) = delete;
  friend void operator-(__nv_bfloat16, __nv_bfloat16) = delete;
  friend void operator*(__nv_bfloat16, __nv_bfloat16) = delete;
  friend void operator/(__nv_bfloat16, __nv_bfloat16) = delete;

 private:
  uint16_t bits_;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 x) {
  return static_cast<float>(x);
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  return __nv_bfloat16(x);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return __nv_bfloat16(x);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.bits();
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return __nv_bfloat16::from_bits(bits);
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
inline bool __hisnan(__nv_bfloat16 x) {
  return (x.bits() & 0x7FFFu) > 0x7F80u;
}
// Sixteen set bits for each half where the comparison holds: greater, which no NaN is; not equal, which a NaN
// is.
inline unsigned __hgt2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (float(a.x) > float(b.x) ? 0xFFFFu : 0u) | (float(a.y) > float(b.y) ? 0xFFFF0000u : 0u);
}
inline unsigned __hneu2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (float(a.x) != float(b.x) ? 0xFFFFu : 0u) | (float(a.y) != float(b.y) ? 0xFFFF0000u : 0u);
}
