// Twin of csrc/bindings/device.h: the emulated device computes on CPU tensors and holds kernels to the
// buffers that the bindings declare.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>

#include "common/chip.h"
#include "common/launch.h"
#include "emulator/device.h"
#include "emulator/global_memory.h"

namespace fastcnn {

inline Chip current_chip() {
  return emulator::emulated_chip();
}

class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}

  cudaStream_t stream() const { return nullptr; }
  Chip chip() const { return current_chip(); }

  void may_read(const void* data, size_t bytes) { buffers_.may_read(data, bytes); }
  void may_write(const void* data, size_t bytes) { buffers_.may_write(data, bytes); }

 private:
  emulator::BufferScope buffers_;
};

}  // namespace fastcnn
