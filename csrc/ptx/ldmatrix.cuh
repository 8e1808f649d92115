// ldmatrix: a warp loads 8x8 matrices of 16-bit elements from shared memory, in the layout that mma.cuh
// takes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn::ptx {

// Lane l gives the shared-memory address of row l%8 of matrix l/8, 16 bytes aligned to 16; lanes beyond the
// matrices' rows give any valid address. matrix[i] gets, of matrix i, row l/4, columns 2*(l%4) and the next;
// transposed: column l/4, rows 2*(l%4) and the next.
template <bool Transposed = false>
__device__ inline void ldmatrix_x1(uint32_t (&matrix)[1], uint32_t shared_address) {
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(matrix[0])
                 : "r"(shared_address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(matrix[0])
                 : "r"(shared_address)
                 : "memory");
  }
}

template <bool Transposed = false>
__device__ inline void ldmatrix_x2(uint32_t (&matrix)[2], uint32_t shared_address) {
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(shared_address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(shared_address)
                 : "memory");
  }
}

template <bool Transposed = false>
__device__ inline void ldmatrix_x4(uint32_t (&matrix)[4], uint32_t shared_address) {
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(shared_address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(shared_address)
                 : "memory");
  }
}

}  // namespace fastcnn::ptx
