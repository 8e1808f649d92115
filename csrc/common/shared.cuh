// Shared memory: a kernel names its layout as one struct of SharedArrays, and is launched with sizeof(that
// struct). Elements are reached only through load/store, so that the emulator can check bounds, alignment and
// races, and count.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/memory.cuh"

namespace fastcnn {

template <class T, int N>
class alignas(16) SharedArray {
 public:
  __device__ T load(int i) const { return data_[i]; }
  __device__ void store(int i, T value) { data_[i] = value; }

  // V elements as one access; i must be a multiple of V.
  template <int V>
  __device__ Vector<T, V> load_vector(int i) const {
    return *reinterpret_cast<const Vector<T, V>*>(&data_[i]);
  }
  template <int V>
  __device__ void store_vector(int i, const Vector<T, V>& values) {
    *reinterpret_cast<Vector<T, V>*>(&data_[i]) = values;
  }

  // The shared-window address of element i, for cp.async and ldmatrix.
  __device__ uint32_t address(int i) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(&data_[i]));
  }

 private:
  T data_[N];
};

// The block's shared memory, seen as Layout. Its content is undefined at the start of a block.
template <class Layout>
__device__ inline Layout& shared_memory() {
  extern __shared__ __align__(128) unsigned char fastcnn_shared_bytes[];
  return *reinterpret_cast<Layout*>(fastcnn_shared_bytes);
}

}  // namespace fastcnn
