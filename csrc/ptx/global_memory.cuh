// Global-memory access of 1, 2, 4, 8 or 16 bytes: the only instructions by which kernels touch global memory.
// Loads take the read-only path: no kernel reads what the same launch writes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn::ptx {

template <int Bytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
template <int Bytes>
using word_t = typename Word<Bytes>::type;

template <int Bytes>
__device__ inline word_t<Bytes> ld_global(const void* address) {
  return __ldg(static_cast<const word_t<Bytes>*>(address));
}

// Assembly for the wide ones: of a plain assignment whose value was put together from elements, nvcc 13 makes
// stores of 4 bytes.
template <int Bytes>
__device__ inline void st_global(void* address, word_t<Bytes> value) {
  if constexpr (Bytes == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
                 "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w));
  } else if constexpr (Bytes == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(address)), "r"(value.x),
                 "r"(value.y));
  } else {
    *static_cast<word_t<Bytes>*>(address) = value;
  }
}

}  // namespace fastcnn::ptx
