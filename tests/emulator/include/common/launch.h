// Twin of csrc/common/launch.h: the launch runs here and now, on the emulated device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "emulator/engine.h"

namespace fastcnn {

struct LaunchConfig {
  dim3 grid;
  int threads = 256;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// kernel is `__global__ void f(const __grid_constant__ Params)`; an empty grid launches nothing.
template <class Params>
void launch(const char* name, void (*kernel)(Params), const LaunchConfig& config, const Params& params) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  struct Call {
    void (*kernel)(Params);
    const Params* params;
  } call{kernel, &params};
  const auto body = [](void* closure) {
    const Call& c = *static_cast<const Call*>(closure);
    c.kernel(*c.params);
  };
  emulator::run_launch(name, {config.grid.x, config.grid.y, config.grid.z}, config.threads,
                       config.shared_bytes, body, &call);
}

}  // namespace fastcnn
