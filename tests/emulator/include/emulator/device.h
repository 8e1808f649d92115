// What the tests set and see of the emulated device: the library's interface to the module of controls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/chip.h"
#include "emulator/counters.h"
#include "emulator/engine.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(default)

struct LaunchRecord {
  std::string name;
  Grid grid;
  int threads;
  size_t shared_bytes;
  Counters counters;
};

// The order of blocks and threads is drawn from the seed and the number of launches since it was set.
void set_seed(uint64_t seed);

std::vector<LaunchRecord> launch_records();
void forget_launch_records();

// The chip that the planner is told of; an H100 unless set otherwise.
Chip emulated_chip();
void set_emulated_chip(const Chip& chip);

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
