// The block's shared memory under watch: bounds, uninitialised reads, and races between threads.
//
// Each byte has the stamp of its last write and of its readers since (engine.h). Two accesses of one byte by
// different threads, one of them a write, must have a barrier between them: __syncthreads, or __syncwarp
// within a warp. Shuffles and votes order no memory, as in CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator/engine.h"
#include "emulator/where.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

inline constexpr uint32_t kMaxSharedBytes = 227 * 1024;

extern unsigned char shared_buffer[];    // of the block that runs now
extern uint32_t shared_write_stamps[];   // per byte
extern uint32_t shared_reader_stamps[];  // per byte
extern uint32_t shared_size;             // bytes that the kernel was launched with

// Where an array lies and how it is seen, for the text of an error.
struct SharedPlace {
  uint32_t offset;  // of the accessed byte in the block's shared memory
  int index;        // of the element in its array, or -1
  Where where;
};

[[noreturn]] void fail_shared_index(int index, int elements, int count, Where where);
[[noreturn]] void fail_shared_alignment(int index, int elements, Where where);
[[noreturn]] void fail_shared_outside(uint32_t offset, uint32_t bytes, Where where);
[[noreturn]] void fail_shared_layout(size_t layout_bytes);
void read_shared_slowly(uint32_t bytes, const SharedPlace& place);
void write_shared_slowly(uint32_t bytes, const SharedPlace& place);

// The block's shared memory at a block's start: poisoned, its bytes unwritten.
void begin_shared(size_t bytes);
void forget_shared_stamps();

// True if the stamps of `Bytes` bytes are all `expected`.
template <int Bytes>
inline bool all_stamps(const uint32_t* stamps, uint32_t expected) {
  uint32_t differences = 0;
  for (int i = 0; i < Bytes; ++i) differences |= stamps[i] ^ expected;
  return differences == 0;
}

inline void check_shared_range(uint32_t offset, uint32_t bytes, Where where) {
  if (offset > shared_size || bytes > shared_size - offset) fail_shared_outside(offset, bytes, where);
}

template <int Bytes>
inline void note_shared_read(uint32_t offset, int index, Where where) {
  check_shared_range(offset, Bytes, where);
  const uint32_t* writes = shared_write_stamps + offset;
  uint32_t* readers = shared_reader_stamps + offset;
  // Usual: the bytes were written before the last barrier, and read by nobody since or by many.
  if (writes[0] - current.block_began < current.block_ordered - current.block_began &&
      all_stamps<Bytes>(writes, writes[0]) && all_stamps<Bytes>(readers, readers[0])) {
    const uint32_t reader = readers[0];
    constexpr uint32_t kBoth = kSeveralLanes | kSeveralWarps;
    if (reader < current.block_ordered) {
      for (int i = 0; i < Bytes; ++i) readers[i] = current.stamp;
      return;
    }
    if (reader == current.stamp || (reader & kBoth) == kBoth) return;
  }
  read_shared_slowly(Bytes, {offset, index, where});
}

template <int Bytes>
inline void note_shared_write(uint32_t offset, int index, Where where) {
  check_shared_range(offset, Bytes, where);
  uint32_t* writes = shared_write_stamps + offset;
  const uint32_t* readers = shared_reader_stamps + offset;
  uint32_t latest = 0;
  for (int i = 0; i < Bytes; ++i) latest = writes[i] > latest ? writes[i] : latest;
  for (int i = 0; i < Bytes; ++i) latest = readers[i] > latest ? readers[i] : latest;
  if (latest < current.block_ordered) {
    for (int i = 0; i < Bytes; ++i) writes[i] = current.stamp;
    return;
  }
  write_shared_slowly(Bytes, {offset, index, where});
}

inline void count_shared_load(int bytes) {
  ++current.counters.shared_loads;
  current.counters.shared_bytes_loaded += static_cast<uint64_t>(bytes);
}
inline void count_shared_store(int bytes) {
  ++current.counters.shared_stores;
  current.counters.shared_bytes_stored += static_cast<uint64_t>(bytes);
}

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
