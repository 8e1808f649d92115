// cp.async: copies from global to shared memory that run beside the thread (sm_80 on).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn::ptx {

// Bytes to a shared-memory address from SharedArray::address(), zeros where the predicate is false; the
// global address is then not touched, but must be aligned all the same. 16-byte copies bypass L1.
template <int Bytes>
__device__ inline void cp_async(uint32_t shared_address, const void* global, bool predicate = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const int source_bytes = predicate ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address),
                 "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address),
                 "l"(__cvta_generic_to_global(global)), "n"(Bytes), "r"(source_bytes)
                 : "memory");
  }
}

// Closes the group of the copies that this thread issued since the last commit.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all but this thread's `Pending` latest groups. Other threads see the bytes after a barrier.
template <int Pending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace fastcnn::ptx
