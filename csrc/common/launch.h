// The one door to a kernel launch: takes the stream, raises the shared-memory limit where needed, checks the
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace fastcnn {

struct LaunchConfig {
  dim3 grid;
  int threads = 256;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("fastcnn: ") + what + " failed: " + cudaGetErrorString(status));
  }
}

// kernel is `__global__ void f(const __grid_constant__ Params)`; an empty grid launches nothing.
template <class Params>
void launch(const char* name, void (*kernel)(Params), const LaunchConfig& config, const Params& params) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  const void* function = reinterpret_cast<const void*>(kernel);
  constexpr size_t kDefaultSharedLimit = 48 * 1024;
  if (config.shared_bytes > kDefaultSharedLimit) {
    // To all that the device has, whatever this launch takes: the limit belongs to the kernel, and another
    // thread that set it to less would spoil the launch between the two calls here.
    int device = 0, most = 0;
    check_cuda(cudaGetDevice(&device), name);
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  check_cuda(cudaLaunchKernel(function, config.grid, dim3(config.threads), arguments, config.shared_bytes,
                              config.stream),
             name);
}

}  // namespace fastcnn
