// Small kernels that break one rule each when told to, and are right otherwise: the emulator must refuse the
// former and run the latter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastcnn::self_tests {

#pragma GCC visibility push(default)

struct SelfTest {
  const char* name;
  void (*run)(bool faulty);
};

struct SelfTestList {
  const SelfTest* first;
  int count;
};
SelfTestList shared_memory_tests();
SelfTestList global_memory_tests();
SelfTestList barrier_tests();
SelfTestList warp_tests();
SelfTestList async_copy_tests();

// The order in which the threads of a grid ran, as block * threads + thread.
std::vector<uint32_t> thread_order(int blocks, int threads);

#pragma GCC visibility pop

}  // namespace fastcnn::self_tests
