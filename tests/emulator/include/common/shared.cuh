// Twin of csrc/common/shared.cuh: every access is checked and counted.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "common/memory.cuh"
#include "emulator/shared_memory.h"

namespace fastcnn {

template <class T, int N>
class alignas(16) SharedArray {
  using Where = emulator::Where;

 public:
  T load(int i, Where where = Where::here()) const {
    check_index<1>(i, where);
    emulator::note_shared_read<sizeof(T)>(offset(i), i, where);
    emulator::count_shared_load(sizeof(T));
    return data_[i];
  }
  void store(int i, T value, Where where = Where::here()) {
    check_index<1>(i, where);
    emulator::note_shared_write<sizeof(T)>(offset(i), i, where);
    emulator::count_shared_store(sizeof(T));
    data_[i] = value;
  }

  // V elements as one access; i must be a multiple of V.
  template <int V>
  Vector<T, V> load_vector(int i, Where where = Where::here()) const {
    check_index<V>(i, where);
    emulator::note_shared_read<V * sizeof(T)>(offset(i), i, where);
    emulator::count_shared_load(V * sizeof(T));
    Vector<T, V> values;
    memcpy(&values, &data_[i], sizeof(values));
    return values;
  }
  template <int V>
  void store_vector(int i, const Vector<T, V>& values, Where where = Where::here()) {
    check_index<V>(i, where);
    emulator::note_shared_write<V * sizeof(T)>(offset(i), i, where);
    emulator::count_shared_store(V * sizeof(T));
    memcpy(&data_[i], &values, sizeof(values));
  }

  // The shared-window address of element i, for cp.async and ldmatrix: a byte offset in the block's memory.
  uint32_t address(int i, Where where = Where::here()) const {
    check_index<1>(i, where);
    return offset(i);
  }

 private:
  template <int V>
  static void check_index(int i, Where where) {
    if (i < 0 || i > N - V) emulator::fail_shared_index(i, V, N, where);
    if (i % V != 0) emulator::fail_shared_alignment(i, V, where);
  }
  // An array that lies elsewhere than in shared memory gets an offset beyond its end.
  uint32_t offset(int i) const {
    const auto bytes = reinterpret_cast<const unsigned char*>(&data_[i]) - emulator::shared_buffer;
    return bytes < 0 || bytes >= emulator::kMaxSharedBytes ? UINT32_MAX : static_cast<uint32_t>(bytes);
  }

  T data_[N];
};

// The block's shared memory, seen as Layout. Its content is undefined at the start of a block.
template <class Layout>
inline Layout& shared_memory() {
  static_assert(alignof(Layout) <= 128);
  if (sizeof(Layout) > emulator::shared_size) emulator::fail_shared_layout(sizeof(Layout));
  return *reinterpret_cast<Layout*>(emulator::shared_buffer);
}

}  // namespace fastcnn
