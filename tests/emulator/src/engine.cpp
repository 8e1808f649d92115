#include "emulator/engine.h"

#include <cuda_runtime.h>

#include <array>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "emulator/async_copy.h"
#include "emulator/device.h"
#include "emulator/fiber.h"
#include "emulator/global_memory.h"
#include "emulator/shared_memory.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace fastcnn::emulator {

Current current;

namespace {

// A broken rule, its text complete with coordinates.
class KernelError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// xorshift64*: Marsaglia, "Xorshift RNGs", 2003; Vigna, 2016.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0xD1B54A32D192ED03u) {
    if (state_ == 0) state_ = 1;
    for (int i = 0; i < 4; ++i) below(2);
  }
  uint32_t below(uint32_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    const uint64_t high = (state_ * 0x2545F4914F6CDD1Du) >> 32;
    return static_cast<uint32_t>((high * bound) >> 32);
  }

 private:
  uint64_t state_;
};

struct Thread {
  enum class State { kReady, kAtBarrier, kInCollective, kDone };
  State state = State::kReady;
  const char* waits_in = nullptr;  // name of the barrier or collective
  Where where{};
  Stack* stack = nullptr;  // null until the thread first runs
  Context context;
};

struct Warp {
  uint32_t live = 0;
  uint32_t waiting = 0;
  uint32_t ordered = 0;  // stamps of its lanes below this precede what they do now
  std::array<void*, kWarpSize> payloads{};
  std::array<uint32_t, kWarpSize> masks{};
  std::array<WarpFunction, kWarpSize> functions{};
};

// All of the launch that runs now.
struct Device {
  uint64_t seed = 0;
  uint64_t launches_since_seed = 0;
  Random random{0};
  Chip chip{90, 132, 227 * 1024};
  std::vector<LaunchRecord> records;

  bool running = false;
  const char* kernel = "";
  void (*body)(void*) = nullptr;
  void* closure = nullptr;

  uint32_t time = 1;
  uint32_t threads = 0;
  uint32_t live = 0;
  std::array<Thread, kMaxThreads> thread;
  std::array<Warp, kMaxThreads / kWarpSize> warp;
  std::vector<uint32_t> ready;
  std::vector<uint32_t> at_barrier;
  int barrier_count = 0;
  int barrier_result = 0;

  Context launcher;
  std::vector<std::unique_ptr<Stack>> stacks;
  std::vector<Stack*> free_stacks;
  bool failed = false;
  std::string error;
};

// Never destroyed: a launch may come from a thread that outlives static destruction.
Device& device = *new Device;

uint32_t stamp_of(uint32_t time) {
  return time << kTimeShift;
}

void advance_time() {
  if (++device.time >= kPendingTime)
    fail("synchronises more often in one block than the race check can tell apart");
}

void refresh_current() {
  current.stamp = stamp_of(device.time) | current.thread;
  const uint32_t warp = device.warp[current.thread / kWarpSize].ordered;
  current.warp_ordered = warp > current.block_ordered ? warp : current.block_ordered;
}

void set_current(uint32_t thread) {
  current.thread = thread;
  threadIdx = {thread, 0, 0};
  refresh_current();
}

void order_block() {
  advance_time();
  current.block_ordered = stamp_of(device.time);
  refresh_current();
}

void release(uint32_t thread) {
  device.thread[thread].state = Thread::State::kReady;
  device.ready.push_back(thread);
}

void open_barrier() {
  ++current.counters.barriers;
  device.barrier_result = device.barrier_count;
  device.barrier_count = 0;
  order_block();
  for (const uint32_t thread : device.at_barrier) release(thread);
  device.at_barrier.clear();
}

// Runs the warp's collective if all the lanes that it needs have come. Gives the lanes that were released.
uint32_t try_collective(uint32_t warp_index, uint32_t lane) {
  Warp& warp = device.warp[warp_index];
  const uint32_t lanes = warp.masks[lane] & warp.live;
  if ((lanes & ~warp.waiting) != 0) return 0;
  void* payloads[kWarpSize];
  for (int i = 0; i < kWarpSize; ++i) payloads[i] = ((lanes >> i) & 1u) != 0 ? warp.payloads[i] : nullptr;
  warp.functions[lane](payloads, lanes);
  warp.waiting &= ~lanes;
  return lanes;
}

void release_lanes(uint32_t warp_index, uint32_t lanes) {
  for (uint32_t i = 0; i < kWarpSize; ++i) {
    if (((lanes >> i) & 1u) != 0) release(warp_index * kWarpSize + i);
  }
}

// Whoever waited for this thread no longer does.
void end_thread() {
  Thread& thread = device.thread[current.thread];
  thread.state = Thread::State::kDone;
  land_all_copies();
  --device.live;
  const uint32_t warp_index = current.thread / kWarpSize;
  Warp& warp = device.warp[warp_index];
  warp.live &= ~(1u << (current.thread % kWarpSize));
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    if (((warp.waiting >> lane) & 1u) != 0) release_lanes(warp_index, try_collective(warp_index, lane));
  }
  if (device.live > 0 && device.at_barrier.size() == device.live) open_barrier();
}

std::string deadlock_text() {
  std::string text = "deadlock: the threads of the block wait for each other. ";
  struct Group {
    const char* name;
    Where where;
    uint32_t first;
    int count;
  };
  std::vector<Group> groups;
  for (uint32_t t = 0; t < device.threads; ++t) {
    const Thread& thread = device.thread[t];
    if (thread.state == Thread::State::kDone) continue;
    bool found = false;
    for (Group& group : groups) {
      if (group.name == thread.waits_in && group.where.line == thread.where.line) {
        ++group.count;
        found = true;
      }
    }
    if (!found) groups.push_back({thread.waits_in, thread.where, t, 1});
  }
  for (const Group& group : groups) {
    text += std::to_string(group.count) + " in " + group.name + at(group.where) + ", the first being " +
            thread_text(group.first) + "; ";
  }
  return text + std::to_string(device.threads - device.live) + " have ended";
}

std::string with_coordinates(const std::string& what, bool with_thread) {
  std::string text = "fastcnn emulator: kernel " + std::string(device.kernel) + ", block (" +
                     std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                     std::to_string(blockIdx.z) + ")";
  if (with_thread) text += ", " + thread_text(current.thread);
  return text + ": " + what + " [seed " + std::to_string(device.seed) + ", launch " +
         std::to_string(device.launches_since_seed) + " since it was set]";
}

void set_error(std::string text) {
  device.failed = true;
  device.error = std::move(text);
}

void fiber_entry();

// Where the running flow goes on: another thread, or the launcher when the block is over or broken. An own
// stack is one that the running fiber gives up.
Context& next_context(Stack* own) {
  if (!device.failed && device.ready.empty() && device.live > 0)
    set_error(with_coordinates(deadlock_text(), false));
  if (device.failed || device.live == 0) {
    if (own != nullptr) device.free_stacks.push_back(own);
    return device.launcher;
  }
  const uint32_t pick = device.random.below(static_cast<uint32_t>(device.ready.size()));
  const uint32_t next = device.ready[pick];
  device.ready[pick] = device.ready.back();
  device.ready.pop_back();
  set_current(next);
  Thread& thread = device.thread[next];
  if (thread.stack == nullptr && own == nullptr) {
    if (device.free_stacks.empty()) {
      device.stacks.push_back(std::make_unique<Stack>(device.stacks.size()));
      device.free_stacks.push_back(device.stacks.back().get());
    }
    thread.stack = device.free_stacks.back();
    device.free_stacks.pop_back();
    prepare(thread.context, *thread.stack, &fiber_entry);
  } else if (thread.stack != nullptr && own != nullptr) {
    device.free_stacks.push_back(own);
  }
  return thread.context;
}

// Suspends the running thread until somebody picks it from the ready ones.
void yield() {
  Context& mine = device.thread[current.thread].context;
  Context& next = next_context(nullptr);
  if (&next != &mine) switch_context(mine, next);
}

// One thread after another on this stack, as long as the next one has not started yet.
void fiber_entry() {
  entered_fiber(device.launcher);
  for (;;) {
    try {
      device.body(device.closure);
      end_thread();
    } catch (const KernelError& error) {
      set_error(error.what());
    } catch (const std::exception& error) {
      set_error(with_coordinates(error.what(), true));
    }
    Thread& ended = device.thread[current.thread];
    Stack* own = ended.stack;
    Context& next = next_context(own);
    Thread& thread = device.thread[current.thread];
    if (&next != &device.launcher && thread.stack == nullptr) {
      thread.stack = own;
      continue;
    }
    switch_context(ended.context, next);
  }
}

void run_block(size_t shared_bytes) {
  if (device.time > kPendingTime / 2) {
    forget_shared_stamps();
    device.time = 1;
  }
  advance_time();
  current.block_began = stamp_of(device.time);
  current.block_ordered = current.block_began;
  begin_shared(shared_bytes);
  device.live = device.threads;
  device.barrier_count = 0;
  device.at_barrier.clear();
  device.ready.clear();
  for (uint32_t t = 0; t < device.threads; ++t) {
    device.thread[t].stack = nullptr;
    release(t);
  }
  for (uint32_t w = 0; w * kWarpSize < device.threads; ++w) {
    const uint32_t lanes = device.threads - w * kWarpSize;
    device.warp[w].live = lanes >= kWarpSize ? ~0u : (1u << lanes) - 1;
    device.warp[w].waiting = 0;
    device.warp[w].ordered = current.block_ordered;
  }
  switch_context(device.launcher, next_context(nullptr));
}

void check_shape(const char* name, Grid grid, int threads, size_t shared_bytes) {
  const auto refuse = [name](const std::string& what) {
    throw std::runtime_error("fastcnn emulator: kernel " + std::string(name) + " cannot be launched with " +
                             what);
  };
  if (threads < 1 || threads > kMaxThreads) refuse(std::to_string(threads) + " threads a block (1 to 1024)");
  if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    refuse("grid (" + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ", " + std::to_string(grid.z) +
           "), of which the limits are (2147483647, 65535, 65535)");
  }
  if (shared_bytes > static_cast<size_t>(device.chip.shared_bytes_per_block)) {
    refuse(std::to_string(shared_bytes) + " bytes of shared memory, of which the emulated chip has " +
           std::to_string(device.chip.shared_bytes_per_block));
  }
}

// Marks the launch as over, however it ended.
struct Running {
  Running() { device.running = true; }
  ~Running() {
    device.running = false;
    current.counters = Counters();
  }
};

void run_grid(Grid grid, size_t shared_bytes) {
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  if (blocks > UINT32_MAX) throw std::runtime_error("fastcnn emulator: a grid of more than 2^32 blocks");
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (uint32_t i = static_cast<uint32_t>(blocks); i > 1; --i)
    std::swap(order[i - 1], order[device.random.below(i)]);
  for (const uint32_t block : order) {
    blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    run_block(shared_bytes);
    if (device.failed) {
      device.free_stacks.clear();
      for (const auto& stack : device.stacks) device.free_stacks.push_back(stack.get());
      forget_pending_copies();
      forget_shared_stamps();
      throw std::runtime_error(device.error);
    }
  }
}

}  // namespace

void fail(const std::string& what) {
  throw KernelError(with_coordinates(what, true));
}

std::string at(Where where) {
  std::string file = where.file;
  const size_t csrc = file.rfind("csrc/");
  if (csrc != std::string::npos) file = file.substr(csrc);
  return " at " + file + ":" + std::to_string(where.line);
}

std::string thread_text(uint32_t thread) {
  return "thread (" + std::to_string(thread) + ", 0, 0)";
}

int live_threads() {
  return static_cast<int>(device.live);
}

uint32_t live_lanes() {
  return device.warp[current.thread / kWarpSize].live;
}

int barrier(const char* name, bool predicate, Where where) {
  if (!device.at_barrier.empty()) {
    const uint32_t other = device.at_barrier.front();
    const Thread& waiting = device.thread[other];
    if (waiting.waits_in != name || waiting.where.line != where.line) {
      fail("divergent barrier: this thread came to " + std::string(name) + at(where) + " while " +
           thread_text(other) + " waits in " + waiting.waits_in + at(waiting.where));
    }
  }
  Thread& thread = device.thread[current.thread];
  thread.state = Thread::State::kAtBarrier;
  thread.waits_in = name;
  thread.where = where;
  device.barrier_count += predicate ? 1 : 0;
  device.at_barrier.push_back(current.thread);
  if (device.at_barrier.size() == device.live) open_barrier();
  yield();
  return device.barrier_result;
}

void warp_collective(const char* name, uint32_t mask, void* payload, WarpFunction run, Where where) {
  const uint32_t warp_index = current.thread / kWarpSize;
  const uint32_t lane = current.thread % kWarpSize;
  Warp& warp = device.warp[warp_index];
  if (((mask >> lane) & 1u) == 0) {
    fail(std::string(name) + at(where) + ": its mask lacks the lane that runs it, lane " +
         std::to_string(lane));
  }
  for (uint32_t other = 0; other < kWarpSize; ++other) {
    if (((mask & warp.waiting) >> other & 1u) == 0) continue;
    if (warp.masks[other] != mask || warp.functions[other] != run) {
      const Thread& waiting = device.thread[warp_index * kWarpSize + other];
      fail("divergent warp: this thread came to " + std::string(name) + at(where) + " while lane " +
           std::to_string(other) + ", which its mask names, waits in " + waiting.waits_in +
           at(waiting.where) + " or with another mask");
    }
  }
  Thread& thread = device.thread[current.thread];
  thread.waits_in = name;
  thread.where = where;
  warp.payloads[lane] = payload;
  warp.masks[lane] = mask;
  warp.functions[lane] = run;
  warp.waiting |= 1u << lane;
  const uint32_t released = try_collective(warp_index, lane);
  if (released != 0) {
    release_lanes(warp_index, released & ~(1u << lane));
    return;
  }
  thread.state = Thread::State::kInCollective;
  yield();
}

void order_warp() {
  advance_time();
  device.warp[current.thread / kWarpSize].ordered = stamp_of(device.time);
  refresh_current();
}

void run_launch(const char* name, Grid grid, int threads, size_t shared_bytes, void (*body)(void*),
                void* closure) {
  const std::lock_guard<std::recursive_mutex> lock(device_mutex());
  if (device.running) throw std::runtime_error("fastcnn emulator: a kernel launches a kernel");
  check_shape(name, grid, threads, shared_bytes);
  const Running running;
  ++device.launches_since_seed;
  if (buffers.count > 0 && ++buffers.launch == 255)
    throw std::runtime_error("fastcnn emulator: more than 254 launches in one scope");
  device.random = Random(device.seed * 1000003 + device.launches_since_seed);
  device.kernel = name;
  device.body = body;
  device.closure = closure;
  device.threads = static_cast<uint32_t>(threads);
  device.failed = false;
  device.launcher = Context();
  current.counters = Counters();
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(static_cast<unsigned>(threads));
  run_grid(grid, shared_bytes);
  constexpr size_t kRecordsKept = 100000;
  if (device.records.size() < kRecordsKept)
    device.records.push_back({name, grid, threads, shared_bytes, current.counters});
}

void set_seed(uint64_t seed) {
  const std::lock_guard<std::recursive_mutex> lock(device_mutex());
  device.seed = seed;
  device.launches_since_seed = 0;
}

std::vector<LaunchRecord> launch_records() {
  const std::lock_guard<std::recursive_mutex> lock(device_mutex());
  return device.records;
}

void forget_launch_records() {
  const std::lock_guard<std::recursive_mutex> lock(device_mutex());
  device.records.clear();
}

Chip emulated_chip() {
  return device.chip;
}

void set_emulated_chip(const Chip& chip) {
  const std::lock_guard<std::recursive_mutex> lock(device_mutex());
  device.chip = chip;
}

}  // namespace fastcnn::emulator
