// Twin of csrc/ptx/global_memory.cuh: alignment and bounds are checked, bytes are counted.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "emulator/global_memory.h"

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
inline word_t<Bytes> ld_global(const void* address) {
  emulator::check_global_read<Bytes>(address);
  word_t<Bytes> word;
  memcpy(&word, address, Bytes);
  return word;
}

template <int Bytes>
inline void st_global(void* address, word_t<Bytes> value) {
  emulator::check_global_write<Bytes>(address);
  memcpy(address, &value, Bytes);
}

}  // namespace fastcnn::ptx
