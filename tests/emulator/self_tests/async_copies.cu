#include "ptx/cp_async.cuh"
#include "self_tests/run.h"

namespace fastcnn::self_tests {
namespace {

__device__ void copy_word(Tile& tile, const Arguments& arguments) {
  ptx::cp_async<4>(tile.words.address(static_cast<int>(threadIdx.x)), arguments.in + threadIdx.x);
}

__global__ void missing_wait(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  copy_word(tile, arguments);
  ptx::cp_async_commit();
  if (!arguments.faulty) ptx::cp_async_wait<0>();
  __syncthreads();
  store_global(arguments.out + t, tile.words.load(kThreads - 1 - t));
}

__global__ void missing_commit(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  copy_word(tile, arguments);
  if (!arguments.faulty) ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  store_global(arguments.out + t, tile.words.load(t));
}

__global__ void wait_for_too_few(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  copy_word(tile, arguments);
  ptx::cp_async_commit();
  ptx::cp_async<4>(tile.others.address(t), arguments.in + t);
  ptx::cp_async_commit();
  if (arguments.faulty) {
    ptx::cp_async_wait<1>();
  } else {
    ptx::cp_async_wait<0>();
  }
  store_global(arguments.out + t, tile.words.load(t) + tile.others.load(t));
}

__global__ void missing_barrier(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  copy_word(tile, arguments);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (!arguments.faulty) __syncthreads();
  store_global(arguments.out + t, tile.words.load(kThreads - 1 - t));
}

__global__ void write_while_pending(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  copy_word(tile, arguments);
  ptx::cp_async_commit();
  if (arguments.faulty) tile.words.store(t, 0);
  ptx::cp_async_wait<0>();
  tile.words.store(t, 1);
}

// The next tile is fetched while others still read this one.
__global__ void copy_over_readers(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  tile.words.store(t, t);
  __syncthreads();
  store_global(arguments.out + t, tile.words.load(kThreads - 1 - t));
  if (!arguments.faulty) __syncthreads();
  copy_word(tile, arguments);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

__global__ void copy_beyond_source(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  const int* source = arguments.in + (t < 60 ? t / 4 * 4 : kThreads);
  // The predicate is what keeps the copy off a bad address.
  if (t % 4 == 0) ptx::cp_async<16>(tile.words.address(t), source, arguments.faulty || t < 60);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

__global__ void copy_misaligned(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  if (threadIdx.x == 0) ptx::cp_async<16>(tile.words.address(arguments.faulty ? 1 : 4), arguments.in);
}

__global__ void copy_nothing_misaligned(const __grid_constant__ Arguments arguments) {
  Tile& tile = shared_memory<Tile>();
  const int* source = arguments.in + (arguments.faulty ? 1 : 4);
  if (threadIdx.x == 0) ptx::cp_async<16>(tile.words.address(0), source, false);
}

const SelfTest kTests[] = {
    {"missing_wait", &run_kernel<&missing_wait>},
    {"missing_commit", &run_kernel<&missing_commit>},
    {"wait_for_too_few", &run_kernel<&wait_for_too_few>},
    {"missing_barrier", &run_kernel<&missing_barrier>},
    {"write_while_pending", &run_kernel<&write_while_pending>},
    {"copy_over_readers", &run_kernel<&copy_over_readers>},
    {"copy_beyond_source", &run_kernel<&copy_beyond_source>},
    {"copy_misaligned", &run_kernel<&copy_misaligned>},
    {"copy_nothing_misaligned", &run_kernel<&copy_nothing_misaligned>},
};

}  // namespace

SelfTestList async_copy_tests() {
  return list_of(kTests);
}

}  // namespace fastcnn::self_tests
