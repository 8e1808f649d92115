// Twin of csrc/ptx/ldmatrix.cuh: rows are checked for alignment, bounds and races.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/matrix.h"

namespace fastcnn::ptx {

template <bool Transposed = false>
inline void ldmatrix_x1(uint32_t (&matrix)[1], uint32_t shared_address,
                        emulator::Where where = emulator::Where::here()) {
  emulator::load_matrices(1, Transposed, matrix, shared_address, where);
}

template <bool Transposed = false>
inline void ldmatrix_x2(uint32_t (&matrix)[2], uint32_t shared_address,
                        emulator::Where where = emulator::Where::here()) {
  emulator::load_matrices(2, Transposed, matrix, shared_address, where);
}

template <bool Transposed = false>
inline void ldmatrix_x4(uint32_t (&matrix)[4], uint32_t shared_address,
                        emulator::Where where = emulator::Where::here()) {
  emulator::load_matrices(4, Transposed, matrix, shared_address, where);
}

}  // namespace fastcnn::ptx
