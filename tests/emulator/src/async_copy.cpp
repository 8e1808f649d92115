#include "emulator/async_copy.h"

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "emulator/engine.h"
#include "emulator/shared_memory.h"

namespace fastcnn::emulator {
namespace {

struct Copy {
  uint32_t target;
  int bytes;
  uint32_t group;
  std::array<unsigned char, 16> content;
};

struct ThreadCopies {
  std::vector<Copy> pending;
  uint32_t group = 0;  // that is being filled
};

std::array<ThreadCopies, kMaxThreads>& all_copies = *new std::array<ThreadCopies, kMaxThreads>;

void land(const Copy& copy) {
  memcpy(shared_buffer + copy.target, copy.content.data(), static_cast<size_t>(copy.bytes));
  for (int i = 0; i < copy.bytes; ++i) shared_write_stamps[copy.target + i] = current.stamp;
}

// Lands the groups before `group`.
void land_before(ThreadCopies& copies, uint32_t group) {
  size_t landed = 0;
  while (landed < copies.pending.size() && copies.pending[landed].group < group)
    land(copies.pending[landed++]);
  copies.pending.erase(copies.pending.begin(), copies.pending.begin() + static_cast<std::ptrdiff_t>(landed));
}

}  // namespace

void issue_copy(uint32_t shared_address, const void* source, int bytes, Where where) {
  check_shared_range(shared_address, static_cast<uint32_t>(bytes), where);
  if (shared_address % static_cast<uint32_t>(bytes) != 0) {
    fail("cp.async of " + std::to_string(bytes) + " bytes to shared byte " + std::to_string(shared_address) +
         at(where) + ": the address is not aligned to the copy");
  }
  write_shared_slowly(static_cast<uint32_t>(bytes), {shared_address, -1, where});
  for (int i = 0; i < bytes; ++i) {
    shared_write_stamps[shared_address + i] = (kPendingTime << kTimeShift) | current.thread;
  }
  ThreadCopies& copies = all_copies[current.thread];
  Copy copy{shared_address, bytes, copies.group, {}};
  if (source != nullptr) memcpy(copy.content.data(), source, static_cast<size_t>(bytes));
  copies.pending.push_back(copy);
  ++current.counters.async_copies;
  count_shared_store(bytes);
}

void commit_copies() {
  ++all_copies[current.thread].group;
}

void wait_copies(int pending) {
  ThreadCopies& copies = all_copies[current.thread];
  const uint32_t kept = static_cast<uint32_t>(pending);
  if (copies.group >= kept) land_before(copies, copies.group - kept);
}

void land_all_copies() {
  ThreadCopies& copies = all_copies[current.thread];
  if (copies.group == 0 && copies.pending.empty()) return;
  land_before(copies, UINT32_MAX);
  copies.group = 0;
}

void forget_pending_copies() {
  for (ThreadCopies& copies : all_copies) copies = ThreadCopies();
}

}  // namespace fastcnn::emulator
