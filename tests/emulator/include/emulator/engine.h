// The emulated device: runs a launch block after block, a fiber per thread, and stops with the coordinates of
// the thread that broke a rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "emulator/counters.h"
#include "emulator/where.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

// Every shared-memory access leaves a stamp: the time of the access, two reader flags and the thread. Time
// counts the synchronisations of the launch, so a stamp below `block_ordered` happened before anything that
// runs now.
inline constexpr int kTimeShift = 12;
inline constexpr uint32_t kThreadMask = 1023;
inline constexpr uint32_t kSeveralLanes = 1 << 10;
inline constexpr uint32_t kSeveralWarps = 1 << 11;
inline constexpr uint32_t kPendingTime = (1u << (32 - kTimeShift)) - 1;  // a cp.async that has not landed

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;

// What the running thread needs at hand; set at every switch of threads.
struct Current {
  uint32_t thread = 0;
  uint32_t stamp = 0;          // of an access made now
  uint32_t block_began = 0;    // stamps below belong to earlier blocks
  uint32_t block_ordered = 0;  // stamps below precede this moment, whichever thread made them
  uint32_t warp_ordered = 0;   // the same for stamps of this thread's own warp
  Counters counters;
};
extern Current current;

// Raises `what` with the kernel, block, thread and seed added.
[[noreturn]] void fail(const std::string& what);
std::string at(Where where);
std::string thread_text(uint32_t thread);

// __syncthreads and its voting forms: returns the number of threads whose predicate held.
int barrier(const char* name, bool predicate, Where where);
int live_threads();

// Waits until every live lane of `mask` has come with the same operation, which then runs once over the
// lanes' payloads (null where a lane takes no part).
using WarpFunction = void (*)(void* const (&payloads)[kWarpSize], uint32_t lanes);
void warp_collective(const char* name, uint32_t mask, void* payload, WarpFunction run, Where where);
uint32_t live_lanes();

// Everything that the lanes of this warp did so far precedes what they do from now on.
void order_warp();

// Shape of a launch.
struct Grid {
  unsigned x, y, z;
};
void run_launch(const char* name, Grid grid, int threads, size_t shared_bytes, void (*body)(void*),
                void* closure);

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
