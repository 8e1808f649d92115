#include "self_tests/run.h"

namespace fastcnn::self_tests {
namespace {

__global__ void dropped_barrier(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(t, load_global(arguments.in + t));
  if (!arguments.faulty) __syncthreads();
  store_global(arguments.out + t, tile.words.load(kThreads - 1 - t));
}

// The barrier between reading a tile and overwriting it.
__global__ void dropped_second_barrier(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(t, t);
  __syncthreads();
  const int other = tile.words.load(kThreads - 1 - t);
  if (!arguments.faulty) __syncthreads();
  tile.words.store(t, other);
  store_global(arguments.out + t, other);
}

__global__ void two_writers(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(arguments.faulty ? t / 2 : t, t);
}

// Bytes of one word belong to different threads; a neighbour's byte is not.
__global__ void byte_race(const __grid_constant__ Arguments arguments) {
  struct Bytes {
    SharedArray<unsigned char, kThreads> bytes;
  };
  Bytes& tile = shared_memory<Bytes>();
  const int t = static_cast<int>(threadIdx.x);
  tile.bytes.store(t, 1);
  const int looked_at = arguments.faulty ? (t + 1) % kThreads : t;
  store_global(arguments.out + t, static_cast<int>(tile.bytes.load(looked_at)));
}

// Read by its writer after many readers of an earlier epoch, while another thread still reads.
__global__ void late_reader(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) tile.words.store(0, 1);
  __syncthreads();
  const int seen = t == 0 || arguments.faulty ? tile.words.load(0) : 1;
  if (t == 0) tile.words.store(0, seen + 1);
  store_global(arguments.out + t, seen);
}

__global__ void warp_ordered(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(t, t);
  __syncwarp();
  // A neighbour in the warp is ordered by __syncwarp, one beyond it is not.
  store_global(arguments.out + t, tile.words.load(arguments.faulty ? (t + 32) % kThreads : t ^ 1));
}

__global__ void shuffle_orders_nothing(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(t, t);
  if (arguments.faulty) {
    __shfl_sync(0xFFFFFFFFu, t, 0);
  } else {
    __syncwarp();
  }
  store_global(arguments.out + t, tile.words.load(t ^ 1));
}

__global__ void index_too_large(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  // One past the end of words lies in others: only the array's own bound can tell.
  tile.words.store(arguments.faulty ? t + 1 : t, t);
}

__global__ void index_negative(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.others.store(arguments.faulty ? t - 1 : t, t);
}

__global__ void vector_beyond_end(const __grid_constant__ Arguments arguments) {
  struct Odd {
    SharedArray<int, 10> words;
  };
  Odd& odd = shared_memory<Odd>();
  if (threadIdx.x == 0) {
    Vector<int, 4> values{{1, 2, 3, 4}};
    odd.words.store_vector<4>(arguments.faulty ? 8 : 4, values);
  }
}

__global__ void vector_misaligned(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  if (threadIdx.x == 0) {
    Vector<int, 4> values{{1, 2, 3, 4}};
    tile.words.store_vector<4>(arguments.faulty ? 2 : 4, values);
  }
}

__global__ void uninitialised(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  if (t > 0 || !arguments.faulty) tile.words.store(t, t);
  __syncthreads();
  store_global(arguments.out + t, tile.words.load(t));
}

// A vector of which one element was never written.
__global__ void partly_uninitialised(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  if (t != 6 || !arguments.faulty) tile.words.store(t, t);
  __syncthreads();
  const int vector = t / 4 * 4;
  store_global(arguments.out + t, tile.words.load_vector<4>(vector)[t % 4]);
}

__global__ void not_shared(const __grid_constant__ Arguments arguments) {
  SharedArray<int, 4> local;
  Tile& tile = shared_memory<Tile>();
  if (threadIdx.x == 0) (arguments.faulty ? local.store(0, 1) : tile.words.store(0, 1));
}

__global__ void tile_kernel(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.others.store(t, t);
  store_global(arguments.out + t, tile.others.load(t));
}

// What one block wrote is gone in the next.
__global__ void last_blocks_tile(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  if (arguments.faulty && blockIdx.x == 1) {
    tile.words.load(t);
  } else {
    tile.words.store(t, t);
  }
}

void run_last_blocks_tile(bool faulty) {
  LaunchConfig config = one_block();
  config.grid = dim3(8);
  launch("self_test", &last_blocks_tile, config, Arguments{nullptr, nullptr, faulty});
}

void launched_with_too_little(bool faulty) {
  Buffers buffers;
  emulator::BufferScope scope;
  scope.may_write(buffers.out.data(), sizeof(buffers.out));
  launch("self_test", &tile_kernel, one_block(faulty ? sizeof(Tile) - 4 : sizeof(Tile)),
         Arguments{nullptr, buffers.out.data(), false});
}

void more_than_the_chip_has(bool faulty) {
  Buffers buffers;
  emulator::BufferScope scope;
  scope.may_write(buffers.out.data(), sizeof(buffers.out));
  launch("self_test", &tile_kernel, one_block(faulty ? 227 * 1024 + 4 : 227 * 1024),
         Arguments{nullptr, buffers.out.data(), false});
}

const SelfTest kTests[] = {
    {"dropped_barrier", &run_kernel<&dropped_barrier>},
    {"dropped_second_barrier", &run_kernel<&dropped_second_barrier>},
    {"two_writers", &run_kernel<&two_writers>},
    {"byte_race", &run_kernel<&byte_race>},
    {"late_reader", &run_kernel<&late_reader>},
    {"warp_ordered", &run_kernel<&warp_ordered>},
    {"shuffle_orders_nothing", &run_kernel<&shuffle_orders_nothing>},
    {"index_too_large", &run_kernel<&index_too_large>},
    {"index_negative", &run_kernel<&index_negative>},
    {"vector_beyond_end", &run_kernel<&vector_beyond_end>},
    {"vector_misaligned", &run_kernel<&vector_misaligned>},
    {"uninitialised", &run_kernel<&uninitialised>},
    {"partly_uninitialised", &run_kernel<&partly_uninitialised>},
    {"not_shared", &run_kernel<&not_shared>},
    {"last_blocks_tile", &run_last_blocks_tile},
    {"launched_with_too_little", &launched_with_too_little},
    {"more_than_the_chip_has", &more_than_the_chip_has},
};

}  // namespace

SelfTestList shared_memory_tests() {
  return list_of(kTests);
}

}  // namespace fastcnn::self_tests
