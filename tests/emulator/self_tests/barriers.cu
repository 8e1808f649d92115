#include <stdexcept>

#include "self_tests/run.h"

namespace fastcnn::self_tests {
namespace {

__global__ void divergent_barrier(const __grid_constant__ Arguments arguments) {
  if (!arguments.faulty || threadIdx.x < 10) {
    __syncthreads();
  }
  __syncthreads();
}

__global__ void divergent_branches(const __grid_constant__ Arguments arguments) {
  if (arguments.faulty && threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Half a warp waits for the block, the other half for the warp.
__global__ void deadlock(const __grid_constant__ Arguments arguments) {
  if (!arguments.faulty || threadIdx.x % 32 < 16) __syncthreads();
  __ballot_sync(0xFFFFFFFFu, 1);
}

// Threads that have ended are not waited for.
__global__ void early_exit(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  Tile& tile = shared_memory<Tile>();
  if (t >= 40) return;
  tile.words.store(t, t);
  __syncthreads();
  store_global(arguments.out + t, tile.words.load(arguments.faulty ? 40 : 39 - t));
}

__global__ void throwing(const __grid_constant__ Arguments arguments) {
  if (arguments.faulty && threadIdx.x == 7) throw std::out_of_range("thrown by a kernel");
}

__global__ void nothing(const __grid_constant__ Arguments) {}

void too_many_threads(bool faulty) {
  LaunchConfig config = one_block();
  config.threads = faulty ? 1025 : 1024;
  launch("self_test", &nothing, config, Arguments{});
}

void grid_too_high(bool faulty) {
  LaunchConfig config = one_block();
  config.threads = 1;
  config.grid = dim3(1, faulty ? 65536 : 1000);
  launch("self_test", &nothing, config, Arguments{});
}

uint32_t* order_begin = nullptr;
uint32_t order_length = 0;

__global__ void note_order(const __grid_constant__ Arguments) {
  order_begin[order_length++] = blockIdx.x * blockDim.x + threadIdx.x;
}

const SelfTest kTests[] = {
    {"divergent_barrier", &run_kernel<&divergent_barrier>},
    {"divergent_branches", &run_kernel<&divergent_branches>},
    {"deadlock", &run_kernel<&deadlock>},
    {"early_exit", &run_kernel<&early_exit>},
    {"throwing", &run_kernel<&throwing>},
    {"too_many_threads", &too_many_threads},
    {"grid_too_high", &grid_too_high},
};

}  // namespace

SelfTestList barrier_tests() {
  return list_of(kTests);
}

std::vector<uint32_t> thread_order(int blocks, int threads) {
  std::vector<uint32_t> order(static_cast<size_t>(blocks) * static_cast<size_t>(threads));
  order_begin = order.data();
  order_length = 0;
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(blocks));
  config.threads = threads;
  launch("note_order", &note_order, config, Arguments{});
  return order;
}

}  // namespace fastcnn::self_tests
