// Shuffles, votes and the warp barrier.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "emulator/engine.h"
#include "emulator/where.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

enum class ShuffleMode { kIndex, kUp, kDown, kXor };

struct Shuffle {
  uint64_t value;
  uint64_t result;
  int operand;  // lane, distance or mask
  int width;
};

// One instance per mode: lanes that wait in different modes are in different operations.
template <ShuffleMode Mode>
void run_shuffle(void* const (&payloads)[kWarpSize], uint32_t lanes);

template <ShuffleMode Mode, class T>
inline T shuffle(const char* name, uint32_t mask, T value, int operand, int width, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Shuffle payload{0, 0, operand, width};
  memcpy(&payload.value, &value, sizeof(T));
  warp_collective(name, mask, &payload, &run_shuffle<Mode>, where);
  T result;
  memcpy(&result, &payload.result, sizeof(T));
  return result;
}

// The lanes of `mask` whose predicate holds.
uint32_t ballot(const char* name, uint32_t mask, bool predicate, Where where);
void sync_warp(uint32_t mask, Where where);

#pragma GCC visibility pop

}  // namespace fastcnn::emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  using fastcnn::emulator::ShuffleMode;
  return fastcnn::emulator::shuffle<ShuffleMode::kIndex>("__shfl_sync", mask, value, lane, width, where);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                        fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  using fastcnn::emulator::ShuffleMode;
  return fastcnn::emulator::shuffle<ShuffleMode::kUp>("__shfl_up_sync", mask, value,
                                                      static_cast<int>(distance), width, where);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                          fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  using fastcnn::emulator::ShuffleMode;
  return fastcnn::emulator::shuffle<ShuffleMode::kDown>("__shfl_down_sync", mask, value,
                                                        static_cast<int>(distance), width, where);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                         fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  using fastcnn::emulator::ShuffleMode;
  return fastcnn::emulator::shuffle<ShuffleMode::kXor>("__shfl_xor_sync", mask, value, lane_mask, width,
                                                       where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::ballot("__ballot_sync", mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::ballot("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  return fastcnn::emulator::ballot("__all_sync", mask, predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu,
                       fastcnn::emulator::Where where = fastcnn::emulator::Where::here()) {
  fastcnn::emulator::sync_warp(mask, where);
}
// Fibers run one by one, so the only lane that is sure to be active is the one that asks. CUDA promises no
// more either.
inline unsigned __activemask() {
  return 1u << (fastcnn::emulator::current.thread % fastcnn::emulator::kWarpSize);
}
