// A block's sources on their way to shared memory and its targets on their way out (depthwise_tile.cuh).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/depthwise_axis.cuh"
#include "conv2d/depthwise_shape.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/grad_activation.cuh"

namespace fastcnn {

template <int K>
struct DepthwiseTileShared {
  SharedArray<float, kDepthwiseTilePlanes * K * K> weights;  // [plane][tap]
  // [plane][row][class][column] of the source, then the targets as they lie in memory.
  SharedArray<float, kDepthwiseTileFloats + 8> tile;
};

static_assert(sizeof(DepthwiseTileShared<7>) == depthwise_tile_bytes(7));

// A block's planes, rows and columns, and where they lie in shared memory. Of the columns a block takes all
// classes; of the rows too, and then they are one run, or (by_rows) one class.
struct DepthwiseTilePlace {
  DepthwiseSpan rows;
  DepthwiseSpan columns;
  int plane;
  int planes;
  int first_row;  // of each plane: the source in its first row of shared memory, and how many there are
  int plane_rows;

  __device__ DepthwiseTilePlace(const DepthwiseTileParams& params, const DepthwiseThreadShape& shape,
                                int rest) {
    const DepthwiseImageParams& image = params.image;
    if (params.by_rows) {
      rows = DepthwiseSpan(image.rows, shape.advance(image.rows.block), rest);
      rows.clip(shape);
    } else {
      rows = span_of_all_classes(image.rows, shape, rest);
    }
    columns = span_of_all_classes(image.columns, shape, rest);
    plane = rest * params.block_planes;
    planes = min(params.block_planes, params.planes - plane);
    // Planes that come together come whole, rows that no target sees included.
    const bool whole = params.block_planes > 1;
    first_row = whole ? -rows.origin : rows.low;
    plane_rows = whole ? image.rows.source : max(rows.high - rows.low, 0);
  }
};

// Where a column of the source, counted from the block's origin, lies in its row: its class first.
__device__ inline int depthwise_tile_slot(const DepthwiseTileParams& params, int column) {
  int of_class;
  const int index = params.image.columns.dilation.divide(column, of_class);
  return of_class * params.class_pitch + index;
}

// The sources of a block as they lie in the tensor, and their way to shared memory.
template <class T, int K>
struct DepthwiseTileSources {
  static constexpr int V = 16 / sizeof(T);

  DepthwiseTileShared<K>& shared;
  const DepthwiseTileParams& params;
  int64_t begin;  // the first element in the tensor
  int count;      // elements of the run, or of a row
  int runs;       // one, or rows
  int first_column;
  int origin;
  int width;
  int limit;                    // columns that have a place in shared memory
  bool cropped;                 // some do not
  int first_class, first_slot;  // of column 0

  __device__ DepthwiseTileSources(DepthwiseTileShared<K>& shared, const DepthwiseTileParams& params,
                                  const DepthwiseTilePlace& place)
      : shared(shared),
        params(params),
        origin(place.columns.origin),
        width(params.image.columns.source),
        limit(params.image.columns.dilation.divisor() * params.class_pitch) {
    const DepthwiseAxis& rows = params.image.rows;
    const int64_t row = place.rows.origin + static_cast<int64_t>(place.first_row) *
                                                (params.by_rows ? rows.dilation.divisor() : 1);
    first_column = params.by_rows ? place.columns.low + origin : 0;
    begin = (static_cast<int64_t>(place.plane) * rows.source + row) * width + first_column;
    count = params.by_rows ? max(place.columns.high - place.columns.low, 0)
                           : place.planes * place.plane_rows * width;
    runs = params.by_rows ? place.plane_rows : 1;
    cropped = !params.by_rows && (origin > 0 || width - origin > limit);
    first_slot = slot(0, first_class);
  }

  // Where a column lies in its row of shared memory; one that has no place there, as if it had.
  __device__ int slot(int column, int& of_class) const {
    const FastDiv& dilation = params.image.columns.dilation;
    const int before = dilation.divide(max(origin - column, 0) + dilation.divisor() - 1);
    const int index = dilation.divide(column - origin + before * dilation.divisor(), of_class);
    return of_class * params.class_pitch + index - before;
  }

  template <int N, bool kActivation>
  __device__ Vector<T, N> load(bool predicate, int64_t offset) const {
    const T* const data = static_cast<const T*>(params.image.source.data);
    if constexpr (kActivation) {
      return load_grad_if<N>(predicate, params.image.grad_activation, data, offset);
    } else {
      return load_global_if<N>(predicate, data + offset);
    }
  }

  // N neighbouring elements of a run, from its number `at` on; the first ones may come before it. kClasses:
  // column by column to its class, where the rows may be runs.
  template <bool kClasses, int N>
  __device__ void scatter(int run, int at, const Vector<T, N>& values) const {
    int row = run, column = first_column + at;
    if (!kClasses || !params.by_rows) {
      row = params.source_columns.divide(max(at, 0), column);
      column += min(at, 0);
    }
    int of_class = 0, start = row * params.pitch, to = start + column - origin;
    if constexpr (kClasses) to = start + slot(column, of_class);
    const int classes = params.image.columns.dilation.divisor();
    const auto store = [&](auto wraps, auto takes) {
#pragma unroll
      for (int v = 0; v < N; ++v) {
        if (wraps && column == width) {
          column = 0;
          start += params.pitch;
          to = start + first_slot;
          of_class = first_class;
        }
        if (takes(v, column - origin)) shared.tile.store(to, to_accumulator(values[v]));
        ++column;
        if (!kClasses) {
          ++to;
        } else if (++of_class < classes) {
          to += params.class_pitch;
        } else {
          of_class = 0;
          to += params.class_pitch + 1 - params.pitch;
        }
      }
    };
    // But for the ends of a run, all of the elements are its own; often they are of one row.
    const auto all = [](int, int) { return true; };
    if (cropped || at < 0 || at + N > count) {
      store(std::true_type{}, [&](int v, int in_row) {
        return at + v >= 0 && at + v < count && in_row >= 0 && in_row < limit;
      });
    } else if (column + N > width) {
      store(std::true_type{}, all);
    } else {
      store(std::false_type{}, all);
    }
  }

  // The tensor's elements up to here come in 16 bytes.
  __device__ int64_t whole_end() const {
    return static_cast<int64_t>(params.planes) * params.image.rows.source * width / V * V;
  }

  // One run without dilation: kLoads loads of a thread under way.
  template <int kLoads, bool kActivation>
  __device__ void fetch_run() const {
    if (count == 0) return;  // padding alone; below the image it begins past the tensor's end
    const int shift = static_cast<int>(begin % V);
    const int whole = static_cast<int>(min(static_cast<int64_t>(count), whole_end() - begin));
    const int step = static_cast<int>(blockDim.x) * V;
    for (int start = static_cast<int>(threadIdx.x) * V - shift; start < whole; start += kLoads * step) {
      Vector<T, V> loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int at = start + i * step;
        loaded[i] = load<V, kActivation>(at < whole, begin + at);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (start + i * step < whole) scatter<false, V>(0, start + i * step, loaded[i]);
      }
    }
    const int last = whole + static_cast<int>(threadIdx.x);
    if (last < count) scatter<false, 1>(0, last, load<1, kActivation>(true, begin + last));
  }

  // The piece of 16 bytes with this number: which run, from which of its elements on, and whether it has any.
  struct Piece {
    int run;
    int at;
    int64_t offset;  // of the piece in the tensor
    bool any;
    bool whole;  // it does not reach past the tensor's last 16 bytes
  };
  __device__ Piece piece(int item) const {
    Piece result;
    int vector;
    result.run = params.source_vectors.divide(item, vector);
    const int64_t first =
        begin + static_cast<int64_t>(result.run) * params.image.rows.dilation.divisor() * width;
    result.at = vector * V - static_cast<int>(first % V);
    result.offset = first + result.at;
    result.any = result.run < runs && result.at < count;
    result.whole = result.offset < whole_end();
    return result;
  }

  // Rows one by one, or dilated.
  template <int kLoads, bool kActivation>
  __device__ void fetch_classes() const {
    const int threads = static_cast<int>(blockDim.x);
    const int items = params.by_rows ? runs * params.source_vectors.divisor() : count / V + 2;
    for (int start = static_cast<int>(threadIdx.x); start < items; start += kLoads * threads) {
      Vector<T, V> loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const Piece from = piece(start + i * threads);
        loaded[i] = load<V, kActivation>(from.any && from.whole, from.offset);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const Piece from = piece(start + i * threads);
        if (!from.any) continue;
        if (from.whole) {
          scatter<true, V>(from.run, from.at, loaded[i]);
        } else {
#pragma unroll 1
          for (int v = max(-from.at, 0); v < min(V, count - from.at); ++v) {
            scatter<true, 1>(from.run, from.at + v, load<1, kActivation>(true, from.offset + v));
          }
        }
      }
    }
  }
};

// Brings the sources of the block, and zeros beside them.
template <class T, int K>
__device__ inline void fetch_tile(DepthwiseTileShared<K>& shared, const DepthwiseTileParams& params,
                                  const DepthwiseTilePlace& place) {
  const DepthwiseTileSources<T, K> sources(shared, params, place);
  const bool classes = params.by_rows || params.image.columns.dilation.divisor() > 1;
  if (params.image.grad_activation.saved == nullptr) {
    if (classes) {
      sources.template fetch_classes<2, false>();
    } else {
      sources.template fetch_run<4, false>();
    }
  } else if (classes) {
    sources.template fetch_classes<1, true>();
  } else {
    sources.template fetch_run<1, true>();
  }
  const int left = min(max(-sources.origin, 0), sources.limit);
  const int end = params.by_rows ? place.columns.high : sources.width - sources.origin;
  const int right = min(max(end, left), sources.limit);
  const auto pad = [&](auto slot) {
    for (int row = static_cast<int>(threadIdx.x); row < place.planes * place.plane_rows;
         row += static_cast<int>(blockDim.x)) {
      for (int i = 0; i < left; ++i) shared.tile.store(row * params.pitch + slot(i), 0.0f);
      for (int i = right; i < sources.limit; ++i) shared.tile.store(row * params.pitch + slot(i), 0.0f);
    }
  };
  if (params.image.columns.dilation.divisor() > 1) {
    pad([&](int column) { return depthwise_tile_slot(params, column); });
  } else {
    pad([](int column) { return column; });
  }
}

// Writes the block's targets, of which `count` of the run or of each row lie side by side from `begin` on in
// the tensor, and in shared memory too; there a run begins at the same place within 16 bytes.
template <class T, int K>
__device__ inline void write_tile(const DepthwiseTileShared<K>& shared, const DepthwiseTileParams& params,
                                  int64_t begin, int count, int runs) {
  constexpr int V = 16 / sizeof(T);
  const DepthwiseImageParams& image = params.image;
  T* const output = static_cast<T*>(image.target.data);
  const int run_shift = static_cast<int>(begin % V);
  const int items = params.by_rows ? runs * params.target_vectors.divisor() : (run_shift + count + V - 1) / V;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    int at = item * V - run_shift, from = item * V;
    int64_t offset = begin + at;
    if (params.by_rows) {
      int vector;
      const int row = params.target_vectors.divide(item, vector);
      const int64_t first = begin + static_cast<int64_t>(row) * image.rows.classes * image.columns.target;
      at = vector * V - static_cast<int>(first % V);
      from = row * count + at;
      offset = first + at;
    }
    if (at >= 0 && at + V <= count) {
      float sum[V];
      const float none[V] = {};
      if (params.by_rows) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = shared.tile.load(from + v);
      } else {
        const Vector<float, V> loaded = shared.tile.template load_vector<V>(from);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = loaded[v];
      }
      store_global<V>(output + offset, finish<T>(image.epilogue, sum, none, offset));
    } else {
      for (int v = max(-at, 0); v < min(V, count - at); ++v) {
        const float sum[1] = {shared.tile.load(from + v)};
        const float none[1] = {};
        store_global<1>(output + offset + v, finish<T>(image.epilogue, sum, none, offset + v));
      }
    }
  }
}

}  // namespace fastcnn
