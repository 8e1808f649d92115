// Launches a self-test kernel on one block over small buffers.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "emulator/global_memory.h"
#include "self_tests/self_tests.h"

namespace fastcnn::self_tests {

constexpr int kThreads = 64;

// 64 words of input, 0 to 63, and 64 words of output.
struct Arguments {
  const int* in;
  int* out;
  bool faulty;
};

struct Tile {
  SharedArray<int, kThreads> words;
  SharedArray<int, kThreads> others;
};

using Kernel = void (*)(Arguments);

struct Buffers {
  alignas(16) std::array<int, kThreads> in;
  std::array<int, 64> undeclared;  // so that the end of one buffer is not the begin of the other
  alignas(16) std::array<int, kThreads> out;
  Buffers() : undeclared{}, out{} {
    for (int i = 0; i < kThreads; ++i) in[static_cast<size_t>(i)] = i;
  }
};

inline LaunchConfig one_block(size_t shared_bytes = sizeof(Tile)) {
  LaunchConfig config;
  config.grid = dim3(1);
  config.threads = kThreads;
  config.shared_bytes = shared_bytes;
  return config;
}

template <Kernel kernel, size_t SharedBytes = sizeof(Tile)>
void run_kernel(bool faulty) {
  Buffers buffers;
  emulator::BufferScope scope;
  scope.may_read(buffers.in.data(), sizeof(buffers.in));
  scope.may_write(buffers.out.data(), sizeof(buffers.out));
  launch("self_test", kernel, one_block(SharedBytes),
         Arguments{buffers.in.data(), buffers.out.data(), faulty});
}

template <size_t N>
SelfTestList list_of(const SelfTest (&tests)[N]) {
  return {tests, static_cast<int>(N)};
}

}  // namespace fastcnn::self_tests
