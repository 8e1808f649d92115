#include "conv2d/split_sum.cuh"

#include <stdexcept>

#include "common/launch.h"

namespace fastcnn {

void launch_split_sum(const SplitSumParams& params, cudaStream_t stream) {
  const int64_t elements = static_cast<int64_t>(params.n) * params.c * params.h * params.w + params.tail;
  if (elements == 0) return;
  if (elements >= int64_t{1} << 31) {
    throw std::runtime_error("fastcnn: a split reduction of 2^31 or more elements is not supported");
  }
  SplitSumKernelParams kernel_params;
  kernel_params.sum = params;
  kernel_params.elements = static_cast<int>(elements);
  while (kernel_params.split_threads < 16 && kernel_params.split_threads < params.splits) {
    kernel_params.split_threads *= 2;
    --kernel_params.element_bits;
  }
  kernel_params.w = FastDiv(params.w);
  kernel_params.h = FastDiv(params.h);
  kernel_params.c = FastDiv(params.c);

  const int64_t block_elements = int64_t{1} << kernel_params.element_bits;
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((elements + block_elements - 1) / block_elements));
  config.threads = kSplitSumThreads;
  config.stream = stream;
  visit_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    config.shared_bytes = sizeof(SplitSumShared<accumulator_t<T>>);
    launch("conv2d::split_sum", split_sum<T>, config, kernel_params);
  });
}

}  // namespace fastcnn
