// How the threads of a block spread over channels and pixels when a kernel is bound by memory: lanes run
// along whatever lies contiguous, channels for NHWC and pixels for NCHW.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn {

// 0 <= i < extent, as one comparison.
__host__ __device__ inline bool within(int i, int extent) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(extent);
}

// Both counts are powers of two. "Groups" are what one thread works on: a vector of channels, a few pixels.
struct ThreadTile {
  int channel_threads = 1;
  int pixel_threads = 32;
  int fast_bits = 0;  // log2 of the count along which neighbouring threads run
  bool channels_fast = true;

  __host__ __device__ int threads() const { return channel_threads * pixel_threads; }
  __host__ __device__ int channel_of(int thread) const {
    return channels_fast ? thread & (channel_threads - 1) : thread >> fast_bits;
  }
  __host__ __device__ int pixel_of(int thread) const {
    return channels_fast ? thread >> fast_bits : thread & (pixel_threads - 1);
  }
};

// A tile of at least a warp and at most max_threads (a power of two) with up to max_fast threads along the
// fast direction, and more there only when the other direction has nothing for them to do.
inline ThreadTile choose_thread_tile(bool channels_fast, int64_t channel_groups, int64_t pixel_groups,
                                     int max_fast, int max_threads) {
  const auto covering_power = [](int64_t extent, int limit) {
    int power = 1;
    while (power < limit && power < extent) power *= 2;
    return power;
  };
  const int64_t fast_extent = channels_fast ? channel_groups : pixel_groups;
  const int64_t slow_extent = channels_fast ? pixel_groups : channel_groups;
  int fast = covering_power(fast_extent, max_fast < max_threads ? max_fast : max_threads);
  int slow = covering_power(slow_extent, max_threads / fast);
  fast = covering_power(fast_extent, max_threads / slow);
  while (fast * slow < 32) slow *= 2;

  ThreadTile tile;
  tile.channels_fast = channels_fast;
  tile.channel_threads = channels_fast ? fast : slow;
  tile.pixel_threads = channels_fast ? slow : fast;
  while ((1 << tile.fast_bits) < fast) ++tile.fast_bits;
  return tile;
}

}  // namespace fastcnn
