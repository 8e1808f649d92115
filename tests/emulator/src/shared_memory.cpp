#include "emulator/shared_memory.h"

#include <string>

namespace fastcnn::emulator {

alignas(1024) unsigned char shared_buffer[kMaxSharedBytes];
uint32_t shared_write_stamps[kMaxSharedBytes];
uint32_t shared_reader_stamps[kMaxSharedBytes];
uint32_t shared_size = 0;

namespace {

uint32_t thread_of(uint32_t stamp) {
  return stamp & kThreadMask;
}

bool same_warp(uint32_t stamp) {
  return thread_of(stamp) / kWarpSize == current.thread / kWarpSize;
}

// True if what left the stamp happened before what the running thread does now, or was its own doing.
bool precedes(uint32_t stamp) {
  if (stamp < current.block_ordered) return true;
  if ((stamp & kSeveralWarps) == 0 && same_warp(stamp) && stamp < current.warp_ordered) return true;
  return thread_of(stamp) == current.thread && (stamp & (kSeveralLanes | kSeveralWarps)) == 0;
}

bool is_pending(uint32_t stamp) {
  return stamp >> kTimeShift == kPendingTime;
}

std::string place_text(const SharedPlace& place) {
  std::string text = place.index >= 0 ? "element " + std::to_string(place.index) + " of its array, " : "";
  return text + "byte " + std::to_string(place.offset) + " of the block's shared memory" + at(place.where);
}

[[noreturn]] void fail_pending(const char* verb, uint32_t stamp, const SharedPlace& place) {
  fail(std::string(verb) + " " + place_text(place) + ", into which a cp.async of " +
       thread_text(thread_of(stamp)) + " has not landed: its wait is missing");
}

[[noreturn]] void fail_race(const char* verb, const char* other_verb, uint32_t stamp,
                            const SharedPlace& place) {
  const bool several = (stamp & (kSeveralLanes | kSeveralWarps)) != 0;
  fail("race on shared memory: " + std::string(verb) + " " + place_text(place) + ", which " +
       thread_text(thread_of(stamp)) + (several ? " and others" : "") + " " + other_verb +
       " with no barrier in between");
}

}  // namespace

void fail_shared_index(int index, int elements, int count, Where where) {
  fail("shared memory out of bounds: accesses " +
       (elements == 1 ? "element " + std::to_string(index)
                      : "elements " + std::to_string(index) + " to " + std::to_string(index + elements - 1)) +
       " of an array of " + std::to_string(count) + at(where));
}

void fail_shared_alignment(int index, int elements, Where where) {
  fail("misaligned shared memory access: a vector of " + std::to_string(elements) + " elements at element " +
       std::to_string(index) + ", which is not a multiple of " + std::to_string(elements) + at(where));
}

void fail_shared_outside(uint32_t offset, uint32_t bytes, Where where) {
  if (offset == UINT32_MAX) fail("a SharedArray that does not lie in shared memory is accessed" + at(where));
  fail("shared memory out of bounds: accesses " + std::to_string(bytes) + " bytes at byte " +
       std::to_string(offset) + ", but the kernel was launched with " + std::to_string(shared_size) +
       at(where));
}

void fail_shared_layout(size_t layout_bytes) {
  fail("its shared memory layout takes " + std::to_string(layout_bytes) +
       " bytes, but it was launched with " + std::to_string(shared_size));
}

void read_shared_slowly(uint32_t bytes, const SharedPlace& place) {
  for (uint32_t i = place.offset; i < place.offset + bytes; ++i) {
    const uint32_t write = shared_write_stamps[i];
    if (is_pending(write)) fail_pending("reads", write, place);
    if (write < current.block_began) fail("reads uninitialised shared memory: " + place_text(place));
    if (!precedes(write)) fail_race("reads", "wrote", write, place);

    uint32_t& reader = shared_reader_stamps[i];
    if (precedes(reader)) {
      reader = current.stamp;
    } else if (thread_of(reader) != current.thread || (reader & (kSeveralLanes | kSeveralWarps)) != 0) {
      const uint32_t flags = same_warp(reader) ? kSeveralLanes : kSeveralLanes | kSeveralWarps;
      reader = (current.stamp & ~kThreadMask) | (reader & (kThreadMask | kSeveralWarps)) | flags;
    }
  }
}

void write_shared_slowly(uint32_t bytes, const SharedPlace& place) {
  for (uint32_t i = place.offset; i < place.offset + bytes; ++i) {
    const uint32_t write = shared_write_stamps[i];
    if (is_pending(write)) fail_pending("writes", write, place);
    if (!precedes(write)) fail_race("writes", "wrote", write, place);
    if (!precedes(shared_reader_stamps[i])) fail_race("writes", "read", shared_reader_stamps[i], place);
    shared_write_stamps[i] = current.stamp;
  }
}

void begin_shared(size_t bytes) {
  shared_size = static_cast<uint32_t>(bytes);
  memset(shared_buffer, 0xFF, bytes);
}

void forget_shared_stamps() {
  memset(shared_write_stamps, 0, sizeof(shared_write_stamps));
  memset(shared_reader_stamps, 0, sizeof(shared_reader_stamps));
}

}  // namespace fastcnn::emulator
