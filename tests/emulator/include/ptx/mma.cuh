// Twin of csrc/ptx/mma.cuh: products are exact and each sum is rounded once, where hardware may round more.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "emulator/float16.h"
#include "emulator/matrix.h"

namespace fastcnn::ptx {

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                         emulator::Where where = emulator::Where::here()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  constexpr auto kType =
      std::is_same_v<T, __half> ? emulator::MmaType::kFloat16 : emulator::MmaType::kBFloat16;
  emulator::multiply_matrices(kType, d, a, b, c, where);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], emulator::Where where = emulator::Where::here()) {
  emulator::multiply_matrices(emulator::MmaType::kTf32, d, a, b, c, where);
}

inline uint32_t cvt_rna_tf32(float x) {
  return emulator::float_to_tf32_bits(x);
}

}  // namespace fastcnn::ptx
