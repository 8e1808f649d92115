#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "self_tests/run.h"

namespace fastcnn::self_tests {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__global__ void absent_lane(const __grid_constant__ Arguments arguments) {
  if (arguments.faulty && threadIdx.x == 5) __syncthreads();
  __any_sync(kAllLanes, 1);
  if (!arguments.faulty || threadIdx.x != 5) __syncthreads();
}

__global__ void different_operations(const __grid_constant__ Arguments arguments) {
  if (arguments.faulty && threadIdx.x % 32 == 0) {
    __shfl_xor_sync(kAllLanes, 1, 1);
  } else {
    __shfl_down_sync(kAllLanes, 1, 1);
  }
}

__global__ void different_masks(const __grid_constant__ Arguments arguments) {
  __ballot_sync(arguments.faulty && threadIdx.x % 32 == 1 ? 3u : kAllLanes, 1);
}

__global__ void mask_without_self(const __grid_constant__ Arguments arguments) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  __ballot_sync(arguments.faulty ? ~half : half, 1);
}

__global__ void shuffle_from_outside(const __grid_constant__ Arguments arguments) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane < 16) __shfl_sync(0x0000FFFFu, lane, arguments.faulty ? lane + 1 : lane);
}

__global__ void shuffle_width(const __grid_constant__ Arguments arguments) {
  __shfl_sync(kAllLanes, 1, 0, arguments.faulty ? 12 : 8);
}

__global__ void partial_syncwarp(const __grid_constant__ Arguments arguments) {
  if (threadIdx.x % 32 < 16 || !arguments.faulty) __syncwarp(arguments.faulty ? 0xFFFFu : kAllLanes);
  __syncthreads();
}

__global__ void mma_of_few_lanes(const __grid_constant__ Arguments arguments) {
  if (arguments.faulty && threadIdx.x == 40) return;
  const uint32_t a[4] = {};
  const uint32_t b[2] = {};
  const float c[4] = {};
  float d[4];
  ptx::mma_m16n8k8_tf32(d, a, b, c);
}

struct Rows {
  SharedArray<uint32_t, 256> words;
};

__global__ void ldmatrix_misaligned(const __grid_constant__ Arguments arguments) {
  Rows& rows = shared_memory<Rows>();
  const int t = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) rows.words.store(4 * t + i, 0);
  __syncthreads();
  uint32_t matrices[4];
  ptx::ldmatrix_x4(matrices, rows.words.address(t % 32 * 4 + (arguments.faulty ? 2 : 0)));
}

__global__ void ldmatrix_race(const __grid_constant__ Arguments arguments) {
  Rows& rows = shared_memory<Rows>();
  const int t = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) rows.words.store(4 * t + i, 0);
  if (!arguments.faulty) __syncthreads();
  uint32_t matrices[4];
  ptx::ldmatrix_x4(matrices, rows.words.address((t ^ 1) * 4));
}

const SelfTest kTests[] = {
    {"absent_lane", &run_kernel<&absent_lane>},
    {"different_operations", &run_kernel<&different_operations>},
    {"different_masks", &run_kernel<&different_masks>},
    {"mask_without_self", &run_kernel<&mask_without_self>},
    {"shuffle_from_outside", &run_kernel<&shuffle_from_outside>},
    {"shuffle_width", &run_kernel<&shuffle_width>},
    {"partial_syncwarp", &run_kernel<&partial_syncwarp>},
    {"mma_of_few_lanes", &run_kernel<&mma_of_few_lanes>},
    {"ldmatrix_misaligned", &run_kernel<&ldmatrix_misaligned, sizeof(Rows)>},
    {"ldmatrix_race", &run_kernel<&ldmatrix_race, sizeof(Rows)>},
};

}  // namespace

SelfTestList warp_tests() {
  return list_of(kTests);
}

}  // namespace fastcnn::self_tests
