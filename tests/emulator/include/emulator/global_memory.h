// Global memory under watch: kernels may touch only the buffers that the launching code declared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "emulator/engine.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

struct Buffer {
  uintptr_t begin;
  size_t bytes;
  uint8_t* written;  // null if read-only; else per byte the ordinal of the launch that wrote it, 0 for none
};

// The buffers of the scope that is open now.
struct Buffers {
  Buffer* first = nullptr;
  int count = 0;
  uint8_t launch = 0;  // ordinal of the running launch within the scope
};
extern Buffers buffers;

[[noreturn]] void fail_global(const char* verb, const void* address, int bytes);
void check_written_earlier(const Buffer& buffer, size_t offset, int bytes, const void* address);
void note_global_write(const Buffer& buffer, size_t offset, int bytes, const void* address);

inline const Buffer* find_buffer(uintptr_t address, size_t bytes) {
  for (int i = 0; i < buffers.count; ++i) {
    const Buffer& buffer = buffers.first[i];
    const uintptr_t offset = address - buffer.begin;
    if (offset < buffer.bytes && bytes <= buffer.bytes - offset) return &buffer;
  }
  return nullptr;
}

template <int Bytes>
inline void check_global_read(const void* address) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(address);
  const Buffer* buffer = a % Bytes == 0 ? find_buffer(a, Bytes) : nullptr;
  if (buffer == nullptr) fail_global("reads", address, Bytes);
  if (buffer->written != nullptr) check_written_earlier(*buffer, a - buffer->begin, Bytes, address);
  ++current.counters.global_loads[width_index(Bytes)];
}

// A copy that reads nothing still names an address, which must be aligned.
template <int Bytes>
inline void check_copy_source(const void* address, bool reads) {
  if (reads) return check_global_read<Bytes>(address);
  if (reinterpret_cast<uintptr_t>(address) % Bytes != 0) fail_global("copies none of", address, Bytes);
}

template <int Bytes>
inline void check_global_write(const void* address) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(address);
  const Buffer* buffer = a % Bytes == 0 ? find_buffer(a, Bytes) : nullptr;
  if (buffer == nullptr || buffer->written == nullptr) fail_global("writes", address, Bytes);
  note_global_write(*buffer, a - buffer->begin, Bytes, address);
  ++current.counters.global_stores[width_index(Bytes)];
}

// Declares the buffers of the launches made while it lives. Written buffers are poisoned with 0xFF; a launch
// may read of them only what an earlier launch of the scope wrote, and write each byte once.
class __attribute__((visibility("default"))) BufferScope {
 public:
  BufferScope();
  ~BufferScope();
  BufferScope(const BufferScope&) = delete;
  BufferScope& operator=(const BufferScope&) = delete;

  void may_read(const void* data, size_t bytes);
  void may_write(const void* data, size_t bytes);

 private:
  void publish();

  std::unique_lock<std::recursive_mutex> lock_;
  Buffers outer_;
  std::vector<Buffer> declared_;
  std::vector<uint8_t*> shadows_;
};

// One launch or scope at a time: there is one emulated device.
std::recursive_mutex& device_mutex();

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
