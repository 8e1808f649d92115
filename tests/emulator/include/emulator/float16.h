// Rounding of float to 16-bit formats, to nearest even, and back, on bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastcnn::emulator {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// NaN becomes the canonical NaN of the hardware's conversions.
inline uint16_t float_to_half_bits(float x) {
  const uint32_t bits = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFFu;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // from 65520 on, the nearest is infinity
  uint32_t kept, rest, half;      // kept + rest/(2*half) is the value in units of the last place
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, unit 2^-24
    const int shift = 126 - static_cast<int>(magnitude >> 23);
    if (shift > 24) return sign;
    const uint32_t significand = (magnitude & 0x7FFFFFu) | 0x800000u;
    kept = significand >> shift;
    rest = significand & ((1u << shift) - 1);
    half = 1u << (shift - 1);
  } else {
    kept = (magnitude - 0x38000000u) >> 13;
    rest = magnitude & 0x1FFFu;
    half = 0x1000u;
  }
  if (rest > half || (rest == half && (kept & 1u) != 0)) ++kept;
  return static_cast<uint16_t>(sign | kept);
}

inline float half_bits_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t fraction = half & 0x3FFu;
  if (exponent == 31) return bits_float(sign | 0x7F800000u | (fraction << 13));
  if (exponent != 0) return bits_float(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return bits_float(sign | float_bits(magnitude));
}

inline uint16_t float_to_bfloat16_bits(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float bfloat16_bits_to_float(uint16_t x) {
  return bits_float(static_cast<uint32_t>(x) << 16);
}

// cvt.rna.tf32.f32: 10 bits of fraction, ties away from zero, the other bits zero.
inline uint32_t float_to_tf32_bits(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu;
  if ((bits & 0x7FFFFFFFu) == 0x7F800000u) return bits;
  return (bits + 0x1000u) & ~0x1FFFu;
}

}  // namespace fastcnn::emulator
