// What one launch did, summed over its threads.
#pragma once

#include <cstdint>

namespace fastcnn::emulator {

// Accesses by width: 1, 2, 4, 8 and 16 bytes.
inline constexpr int kWidths = 5;
constexpr int width_index(int bytes) {
  return bytes == 1 ? 0 : bytes == 2 ? 1 : bytes == 4 ? 2 : bytes == 8 ? 3 : 4;
}

struct Counters {
  uint64_t global_loads[kWidths] = {};
  uint64_t global_stores[kWidths] = {};
  uint64_t shared_loads = 0;
  uint64_t shared_stores = 0;
  uint64_t shared_bytes_loaded = 0;
  uint64_t shared_bytes_stored = 0;
  uint64_t async_copies = 0;  // cp.async; those that read count as global loads too
  uint64_t matrix_loads = 0;  // ldmatrix, one per warp
  uint64_t mmas = 0;          // mma.sync, one per warp
  uint64_t shuffles = 0;      // one per warp, as are votes and warp barriers
  uint64_t votes = 0;
  uint64_t warp_barriers = 0;
  uint64_t barriers = 0;  // one per block
};

}  // namespace fastcnn::emulator
