#include "emulator/global_memory.h"

#include <cstdlib>
#include <new>
#include <string>

namespace fastcnn::emulator {

Buffers buffers;

std::recursive_mutex& device_mutex() {
  static std::recursive_mutex& mutex = *new std::recursive_mutex;
  return mutex;
}

namespace {

// The declared buffer that the address lies in or nearest to.
std::string nearest_buffer_text(uintptr_t address) {
  if (buffers.count == 0) return "an address for which no buffer was declared";
  int nearest = 0;
  uintptr_t least = UINTPTR_MAX;
  for (int i = 0; i < buffers.count; ++i) {
    const Buffer& b = buffers.first[i];
    const uintptr_t distance = address < b.begin             ? b.begin - address
                               : address < b.begin + b.bytes ? 0
                                                             : address - (b.begin + b.bytes) + 1;
    if (distance < least) {
      least = distance;
      nearest = i;
    }
  }
  const Buffer& b = buffers.first[nearest];
  const auto offset = static_cast<int64_t>(address) - static_cast<int64_t>(b.begin);
  return "byte " + std::to_string(offset) + " of " + (b.written == nullptr ? "read-only" : "written") +
         " buffer " + std::to_string(nearest) + " of " + std::to_string(b.bytes) + " bytes";
}

}  // namespace

void fail_global(const char* verb, const void* pointer, int bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::string access =
      std::string(verb) + " " + std::to_string(bytes) + " bytes at " + nearest_buffer_text(address);
  if (address % static_cast<uintptr_t>(bytes) != 0) fail("misaligned global memory access: " + access);
  if (find_buffer(address, static_cast<size_t>(bytes)) != nullptr)
    fail("global memory is read-only: " + access);
  fail("global memory out of bounds: " + access);
}

void check_written_earlier(const Buffer& buffer, size_t offset, int bytes, const void* address) {
  for (int i = 0; i < bytes; ++i) {
    const uint8_t launch = buffer.written[offset + static_cast<size_t>(i)];
    if (launch != 0 && launch != buffers.launch) continue;
    const std::string place = nearest_buffer_text(reinterpret_cast<uintptr_t>(address));
    fail(launch == 0 ? "reads uninitialised global memory: " + place
                     : "reads global memory that the same launch wrote: " + place);
  }
}

void note_global_write(const Buffer& buffer, size_t offset, int bytes, const void* address) {
  for (int i = 0; i < bytes; ++i) {
    uint8_t& launch = buffer.written[offset + static_cast<size_t>(i)];
    if (launch == buffers.launch) {
      fail("global memory is written twice in one launch: " +
           nearest_buffer_text(reinterpret_cast<uintptr_t>(address)));
    }
    launch = buffers.launch;
  }
}

BufferScope::BufferScope() : lock_(device_mutex()), outer_(buffers) {
  buffers = Buffers();
}

BufferScope::~BufferScope() {
  buffers = outer_;
  for (uint8_t* shadow : shadows_) std::free(shadow);
}

void BufferScope::may_read(const void* data, size_t bytes) {
  if (bytes == 0) return;
  declared_.push_back({reinterpret_cast<uintptr_t>(data), bytes, nullptr});
  publish();
}

void BufferScope::may_write(const void* data, size_t bytes) {
  if (bytes == 0) return;
  memset(const_cast<void*>(data), 0xFF, bytes);
  auto* shadow = static_cast<uint8_t*>(std::calloc(bytes, 1));
  if (shadow == nullptr) throw std::bad_alloc();
  shadows_.push_back(shadow);
  declared_.push_back({reinterpret_cast<uintptr_t>(data), bytes, shadow});
  publish();
}

void BufferScope::publish() {
  buffers.first = declared_.data();
  buffers.count = static_cast<int>(declared_.size());
}

}  // namespace fastcnn::emulator
