// Twin of csrc/ptx/cp_async.cuh: a copy lands at the wait that covers its group, never before.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/async_copy.h"
#include "emulator/global_memory.h"

namespace fastcnn::ptx {

template <int Bytes>
inline void cp_async(uint32_t shared_address, const void* global, bool predicate = true,
                     emulator::Where where = emulator::Where::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::check_copy_source<Bytes>(global, predicate);
  emulator::issue_copy(shared_address, predicate ? global : nullptr, Bytes, where);
}

inline void cp_async_commit() {
  emulator::commit_copies();
}

template <int Pending>
inline void cp_async_wait() {
  static_assert(Pending >= 0);
  emulator::wait_copies(Pending);
}

}  // namespace fastcnn::ptx
