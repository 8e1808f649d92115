// The device a call runs on: its guard, current stream and chip.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <stdexcept>

#include "common/chip.h"
#include "common/launch.h"

namespace fastcnn {

inline Chip read_chip(int device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  Chip chip;
  chip.compute_capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  chip.sm_count = attribute(cudaDevAttrMultiProcessorCount);
  chip.shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return chip;
}

// A device's attributes never change: the driver is asked once.
inline Chip chip_of_device(int device) {
  static std::mutex mutex;
  static std::map<int, Chip> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, read_chip(device)).first->second;
}

inline Chip current_chip() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return chip_of_device(device);
}

// Makes the tensor's device current for the scope. Kernels launched within it go to stream().
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(tensor.get_device_index()) {}

  cudaStream_t stream() const {
    static const CurrentStream current_stream = find_current_stream();
    void* stream = nullptr;
    if (current_stream == nullptr || current_stream(device_, &stream) != AOTI_TORCH_SUCCESS) {
      throw std::runtime_error("fastcnn: the current CUDA stream cannot be read from this build of torch");
    }
    return static_cast<cudaStream_t>(stream);
  }

  Chip chip() const { return chip_of_device(device_); }

  // The buffers that the scope's launches may touch. The emulator holds kernels to them; a GPU has no use for
  // it.
  void may_read(const void*, size_t) {}
  void may_write(const void*, size_t) {}

 private:
  using CurrentStream = AOTITorchError (*)(int32_t, void**);

  // The symbol lives in libtorch_cuda only; bound at run time, this library also loads where torch is
  // CPU-only.
  static CurrentStream find_current_stream() {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }

  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace fastcnn
