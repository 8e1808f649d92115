// What the tile kernels share (NCHW): a block takes whole planes, or a strip of rows of one plane. Either way
// its part of every dense tensor is one run of bytes, so it comes and goes in 16-byte accesses whatever the
// width of the image; between, threads read and write shared memory one element at a time, neighbouring lanes
// neighbouring columns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/fastdiv.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "common/tensor_view.h"
#include "pool2d/axis.cuh"
#include "pool2d/plan.h"
#include "pool2d/problem.h"
#include "ptx/cp_async.cuh"

namespace fastcnn {

struct TileParams {
  TensorView input;
  TensorView indices;
  TensorView output;
  PoolAxis rows;
  PoolAxis columns;
  Pool2dIndex index = Pool2dIndex::kNone;
  int64_t planes = 0;
  int block_planes = 0;
  int block_rows = 0;    // of the tensor that the pass writes; all of them unless block_planes is 1
  int segment_rows = 0;  // one thread's
  FastDiv by_strips;     // parts of a plane
  FastDiv by_columns;    // of the tensor that the pass writes
  FastDiv by_segments;   // parts of a tile's rows
  // Averages only.
  float common_divisor = 0;  // 0: windows differ
  int64_t divisor_override = 0;
  bool count_include_pad = true;
  bool adaptive = false;
};

// A block's planes and rows.
struct TilePlace {
  int64_t plane;
  int planes;
  int row, row_end;

  __device__ TilePlace(const TileParams& params, int rows) {
    int strip;
    const int group = params.by_strips.divide(static_cast<int>(blockIdx.x), strip);
    plane = static_cast<int64_t>(group) * params.block_planes;
    planes = static_cast<int>(min(static_cast<int64_t>(params.block_planes), params.planes - plane));
    row = strip * params.block_rows;
    row_end = min(row + params.block_rows, rows);
  }
};

// One thread's item: a column of one plane, and a segment of the tile's rows.
struct TileItem {
  int plane;
  int column;
  int row, row_end;

  __device__ TileItem(const TileParams& params, const TilePlace& place, int item) {
    int segment;
    plane = params.by_segments.divide(params.by_columns.divide(item, column), segment);
    row = place.row + segment * params.segment_rows;
    row_end = min(row + params.segment_rows, place.row_end);
  }
  static __device__ int count(const TileParams& params, const TilePlace& place) {
    return place.planes * params.by_segments.divisor() * params.by_columns.divisor();
  }
};

// Elements begin .. end - 1 of a dense tensor, as they lie in shared memory: at the same place within 16
// bytes. The tensor starts at 16 bytes.
template <class E, int kCapacity>
class FlatRun {
 public:
  static constexpr int kPer16 = 16 / sizeof(E);
  using Array = SharedArray<E, kCapacity + 2 * kPer16>;

  __device__ FlatRun(Array& array, int64_t begin, int64_t end)
      : array_(array), first_(begin / kPer16 * kPer16), shift_(static_cast<int>(begin - first_)) {
    end_ = shift_ + static_cast<int>(end - begin);
  }

  __device__ E load(int i) const { return array_.load(shift_ + i); }
  __device__ void store(int i, E value) const { array_.store(shift_ + i, value); }

  // Starts the copies from a tensor of `total` elements; neighbours of the run that share its first or last
  // 16 bytes come along.
  __device__ void fetch(const void* tensor, int64_t total) const {
    const E* from = static_cast<const E*>(tensor) + first_;
    const int whole = static_cast<int>(min(total - first_, static_cast<int64_t>(end_ + kPer16 - 1)));
    for (int i = static_cast<int>(threadIdx.x) * kPer16; i < end_;
         i += static_cast<int>(blockDim.x) * kPer16) {
      if (i + kPer16 <= whole) {
        ptx::cp_async<16>(array_.address(i), from + i);
      } else {
        for (int j = i; j < whole; ++j) array_.store(j, load_global(from + j));
      }
    }
  }

  // Writes the run, and nothing beside it.
  __device__ void flush(void* tensor) const {
    E* to = static_cast<E*>(tensor) + first_;
    for (int i = static_cast<int>(threadIdx.x) * kPer16; i < end_;
         i += static_cast<int>(blockDim.x) * kPer16) {
      if (i >= shift_ && i + kPer16 <= end_) {
        store_global<kPer16>(to + i, array_.template load_vector<kPer16>(i));
      } else {
        for (int j = max(i, shift_); j < min(i + kPer16, end_); ++j) store_global(to + j, array_.load(j));
      }
    }
  }

 private:
  Array& array_;
  int64_t first_;
  int shift_;
  int end_;
};

// Windows that the kernel knows at compile time, K x K at stride S; K = 0: any that PoolAxis describes. The
// large run holds rows of the pool's input or its gradient, the small one rows of its output, and offsets
// belong to those.
template <int K, int S>
inline constexpr int kTileSmallBytes = pool2d_tile_small_bytes(K == 0 || S == 1);
template <class T>
using TileLarge = FlatRun<T, kTileLargeBytes / static_cast<int>(sizeof(T))>;
template <class T, int K, int S>
using TileSmall = FlatRun<T, kTileSmallBytes<K, S> / static_cast<int>(sizeof(T))>;
template <class T, int K, int S, bool kMax>
using TileOffsets = FlatRun<uint8_t, kMax ? kTileSmallBytes<K, S> / static_cast<int>(sizeof(T)) : 0>;

template <class T, int K, int S, bool kMax>
struct TileShared {
  typename TileLarge<T>::Array large;
  typename TileSmall<T, K, S>::Array small;
  typename TileOffsets<T, K, S, kMax>::Array offsets;
};
// Max fprop of windows of any kind: every row reduced along its columns, with the column tap of each maximum.
template <class T, int K, int S, bool kMax>
struct TileFpropShared : TileShared<T, K, S, kMax> {};
template <class T, int S>
struct TileFpropShared<T, 0, S, true> : TileShared<T, 0, S, true> {
  static constexpr int kElements = kTileLargeBytes / static_cast<int>(sizeof(T));
  SharedArray<T, kElements> row_values;
  SharedArray<uint8_t, kElements> row_taps;
};
static_assert(sizeof(TileFpropShared<float, 0, 1, true>) ==
              pool2d_tile_bytes(4, true, true) + pool2d_tile_rows_bytes(4));
static_assert(sizeof(TileFpropShared<__half, 0, 1, true>) ==
              pool2d_tile_bytes(2, true, true) + pool2d_tile_rows_bytes(2));
static_assert(sizeof(TileShared<float, 3, 2, true>) == pool2d_tile_bytes(4, false, true));
static_assert(sizeof(TileShared<__half, 0, 1, true>) == pool2d_tile_bytes(2, true, true));
static_assert(sizeof(TileShared<__half, 3, 1, false>) == pool2d_tile_bytes(2, true, false));

}  // namespace fastcnn
