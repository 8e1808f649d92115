// The tile that every pass of the generic convolution shares: C += A * B through shared memory, on FMA units.
//
// A block owns BM x BN results and walks the reduction BK at a time. Operand tiles lie in shared memory
// as [k][x], so that a thread's TM rows and TN columns are read as 16-byte vectors; two buffers, so that one
// barrier a step is enough: while step i is computed, the loads of step i+1 are in flight to registers.
//
// Tile, for problems that fill the chip: a warp covers 4 x 8 threads; a thread's TM (TN) elements come in
// runs of 4 that lie 4*4 (8*4) apart, which makes each warp-wide read of A and of B one shared-memory
// wavefront. Bound: FMA. At 128 x 128 with 8 x 8 a thread, a step costs 64 FMA per 4 wide shared loads and
// per thread.
//
// SlicedTile, for those that do not: few results, so that there are blocks for every SM, and a deep step,
// which the block's slices (groups of threads that each cover all BM x BN results, 4 x 4 a thread) take in
// turns of 8. Their sums meet in shared memory at the end, added in the order of the slices: always the same
// bits. Bound: latency. A deep step is more loads in flight (16 to 32 KB a block) and fewer barriers; 8 warps
// share a reduction that one would walk alone. Neighbouring lanes of a load along the reduction would store
// to the same banks (a row of 32 or 16 elements has too few); chunks of 4 elements swap places by k / 8
// instead.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/generic.h"

namespace fastcnn::generic {

// Where this thread's results lie in the block's tile.
template <class Tile>
struct ThreadPosition {
  int row0, column0;
  __device__ ThreadPosition(int thread, bool) {
    const int lane = thread % 32, warp = thread / 32;
    row0 = (warp / Tile::kWarpColumns) * (Tile::kLaneRows * Tile::kRows) +
           (lane / Tile::kLaneColumns) * Tile::kRun;
    column0 = (warp % Tile::kWarpColumns) * (Tile::kLaneColumns * Tile::kColumns) +
              (lane % Tile::kLaneColumns) * Tile::kRun;
  }
  // i and j in [0, kRows) and [0, kColumns)
  __device__ int row(int i) const {
    return row0 + (i / Tile::kRun) * (Tile::kLaneRows * Tile::kRun) + i % Tile::kRun;
  }
  __device__ int column(int j) const {
    return column0 + (j / Tile::kRun) * (Tile::kLaneColumns * Tile::kRun) + j % Tile::kRun;
  }
};

// The results a thread has once the slices are added up: neighbouring lanes take neighbouring rows or runs of
// columns, as the result lies in memory.
template <class Tile>
struct SlicedPosition {
  int row0, column0;
  __device__ SlicedPosition(int thread, bool lanes_along_rows) {
    constexpr int kRuns = Tile::kBN / Tile::kRun;
    row0 = lanes_along_rows ? thread % Tile::kBM : thread / kRuns;
    column0 = (lanes_along_rows ? thread / Tile::kBM : thread % kRuns) * Tile::kRun;
  }
  __device__ int row(int) const { return row0; }
  __device__ int column(int j) const { return column0 + j; }
};

// kRows x kColumns results a thread ends with, columns in runs of kRun neighbours.
template <int BM_, int BN_, int BK_, int Rows_, int Columns_, int WarpRows_, int WarpColumns_>
struct Tile {
  using Position = ThreadPosition<Tile>;
  static constexpr int kBM = BM_, kBN = BN_, kBK = BK_;
  static constexpr int kRows = Rows_, kColumns = Columns_;
  static constexpr int kLaneRows = 4, kLaneColumns = 8, kRun = 4;
  static constexpr int kWarpRows = WarpRows_, kWarpColumns = WarpColumns_;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static constexpr int kSlices = 1;
  static_assert(kLaneRows * kRows * kWarpRows == kBM && kLaneColumns * kColumns * kWarpColumns == kBN);
  static_assert(kRows % kRun == 0 && kColumns % kRun == 0 && kThreads == kTileThreads);
};

template <int BM_, int BN_, int BK_, int Slices_>
struct SlicedTile {
  using Position = SlicedPosition<SlicedTile>;
  static constexpr int kBM = BM_, kBN = BN_, kBK = BK_;
  static constexpr int kSlices = Slices_, kSliceRun = 8;  // a slice takes 8 neighbouring k at a time
  static constexpr int kEdge = 4;                         // of the products that a thread multiplies
  static constexpr int kSliceThreads = kBM / kEdge * (kBN / kEdge);
  static constexpr int kThreads = kSliceThreads * kSlices;
  static constexpr int kRows = 1, kColumns = kBM * kBN / kThreads, kRun = kColumns;
  static_assert(kBK % (kSliceRun * kSlices) == 0 && kThreads == kTileThreads);
};

// BK = 8 at the wide tile: with 16, the elements in flight push it past the 128 registers that let two blocks
// share an SM.
using WideTile = Tile<kWideTileShape.rows, kWideTileShape.columns, kWideTileShape.depth, 8, 8, 4, 2>;
using NarrowTile = Tile<kNarrowTileShape.rows, kNarrowTileShape.columns, kNarrowTileShape.depth, 4, 4, 8, 1>;
using SmallTile = SlicedTile<kSmallTileShape.rows, kSmallTileShape.columns, kSmallTileShape.depth, 4>;
using TinyTile = SlicedTile<kTinyTileShape.rows, kTinyTileShape.columns, kTinyTileShape.depth, 16>;

// How BK x BX elements of an operand lie in shared memory: two buffers of rows of x. A padded row keeps
// 16-byte alignment and spreads transposing stores over banks.
template <int BX_, int BK_, bool Swizzled>
struct OperandShape {
  static constexpr int kBX = BX_, kBK = BK_, kRow = BX_ + kTilePad, kElements = 2 * kBK * kRow;
  static constexpr bool kSwizzled = Swizzled;
  // Vectors of 4 from a multiple of 4 stay whole.
  __device__ static int index(int buffer, int k, int x) {
    if constexpr (Swizzled) x ^= 4 * (static_cast<unsigned>(k) / 8 % (kBX / 4));
    return (buffer * kBK + k) * kRow + x;
  }
};

template <class Acc, class Tile>
struct SharedLayout {
  using A = OperandShape<Tile::kBM, Tile::kBK, (Tile::kSlices > 1)>;
  using B = OperandShape<Tile::kBN, Tile::kBK, (Tile::kSlices > 1)>;
  SharedArray<Acc, A::kElements> a;  // in the end, the slices' sums
  SharedArray<Acc, B::kElements> b;
};

// Brings BK x BX elements of an operand from global memory, through registers, to shared memory.
// The Operand says how neighbouring lanes walk (kAlongK: along the reduction, else along x), how many
// elements one load takes (kVector), what of an address depends on x alone (found once) and on k alone (found
// once a step).
template <class Operand, class Shape, int Threads>
class TileLoader {
  using T = typename Operand::Element;
  using Acc = accumulator_t<T>;
  static constexpr int BX = Shape::kBX, BK = Shape::kBK;
  static constexpr int kVector = Operand::kVector;
  static constexpr bool kAlongK = Operand::kAlongK;
  // Threads side by side along the walked axis: all of it, but along a deep one only so many that the others
  // cover x once.
  static constexpr int kAll = (kAlongK ? BK : BX) / kVector;
  static constexpr int kLanes = kAlongK && Shape::kSwizzled ? std::min(kAll, Threads / BX) : kAll;
  static constexpr int kPasses = kAll / kLanes;
  static constexpr int kStep = Threads / kLanes;  // how far apart a thread's loads are on the other axis
  static constexpr int kOther = kAlongK ? BX : BK;
  static constexpr int kLoads = (kOther + kStep - 1) / kStep;
  static constexpr bool kPartial = kOther % kStep != 0;  // some threads have nothing to load
  static_assert(Threads % kLanes == 0 && kAll % kLanes == 0);

 public:
  __device__ TileLoader(const Operand& operand, int thread)
      : walked_((thread % kLanes) * kVector), other_(thread / kLanes) {
    if constexpr (kAlongK) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) x_[i] = operand.at_x(other_ + i * kStep);
    } else {
      x_[0] = operand.at_x(walked_);
    }
  }

  // k0: first reduction index of the tile, counted from the start of the block's range; end: where the range
  // ends.
  __device__ void load(const Operand& operand, int k0, int end) {
    if constexpr (kAlongK) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int k = k0 + walked_ + pass * kLanes * kVector;
        const auto at_k = operand.at_k(k, k < end);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (!kPartial || other_ + i * kStep < BX) loaded_[pass][i] = operand.load(x_[i], at_k);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = k0 + other_ + i * kStep;
        if (!kPartial || other_ + i * kStep < BK) {
          loaded_[0][i] = operand.load(x_[0], operand.at_k(k, k < end));
        }
      }
    }
  }

  template <class Shared>
  __device__ void store(const Operand& operand, Shared& shared, int buffer) const {
    constexpr int kWide = 16 / sizeof(Acc) < kVector ? 16 / sizeof(Acc) : kVector;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int walked = walked_ + pass * kLanes * kVector;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int other = other_ + i * kStep;
        if (kPartial && other >= kOther) continue;
        const Vector<T, kVector> values = operand.value(loaded_[pass][i]);
        if constexpr (kAlongK) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            shared.store(Shape::index(buffer, walked + v, other), to_accumulator(values[v]));
          }
        } else {
#pragma unroll
          for (int v = 0; v < kVector; v += kWide) {
            Vector<Acc, kWide> wide;
#pragma unroll
            for (int u = 0; u < kWide; ++u) wide[u] = to_accumulator(values[v + u]);
            shared.template store_vector<kWide>(Shape::index(buffer, other, walked + v), wide);
          }
        }
      }
    }
  }

 private:
  int walked_, other_;
  typename Operand::AtX x_[kAlongK ? kLoads : 1];
  typename Operand::Loaded loaded_[kPasses][kLoads];
};

// For products whose rows of A nobody adds up.
struct NoRowSum {
  template <class Shared>
  __device__ void add(const Shared&, int) {}
};

// The sum of one row of A, of row `thread` of the tile: up to 16 elements are added up, then to the total
// with the rounding error of each addition carried along, so that the error does not grow with the length.
// The first BM threads each read their row as the product does; for the others, and where it is not wanted,
// it is idle.
template <class Tile, class Acc>
class RowSum {
 public:
  __device__ RowSum(bool wanted, int thread) : row_(wanted && thread < Tile::kBM ? thread : -1) {}
  __device__ bool active() const { return row_ >= 0; }
  __device__ int row() const { return row_; }
  __device__ Acc total() const { return total_; }

  template <class Shared>
  __device__ void add(const Shared& shared, int buffer) {
    if (row_ < 0) return;
#pragma unroll 1
    for (int first = 0; first < Tile::kBK; first += kStep) {
      Acc step = -error_;
#pragma unroll
      for (int k = first; k < first + kStep; ++k) {
        step += shared.a.load(SharedLayout<Acc, Tile>::A::index(buffer, k, row_));
      }
      const Acc next = total_ + step;
      error_ = next - next == Acc(0) ? (next - total_) - step : Acc(0);  // infinity and NaN have no error
      total_ = next;
    }
  }

 private:
  static constexpr int kStep = std::min(Tile::kBK, 16);
  int row_;
  Acc total_ = 0, error_ = 0;
};

// What a thread multiplies of a step, in registers.
template <class Tile, class Acc>
class Products {
 public:
  // sums += A * B over the tile that the buffer holds.
  template <class Shared>
  __device__ void add_step(const Shared& shared, int buffer, int) {
    const typename Tile::Position position(threadIdx.x, false);
// One step at a time: unrolled, the fragments of several steps compete for the 128 registers and spill, while
// the other warps' 64 FMAs a step already cover the shared loads.
#pragma unroll 1
    for (int k = 0; k < Tile::kBK; ++k) {
      Acc row[Tile::kRows], column[Tile::kColumns];
#pragma unroll
      for (int i = 0; i < Tile::kRows; i += kWide) {
        const auto part = shared.a.template load_vector<kWide>(Shared::A::index(buffer, k, position.row(i)));
#pragma unroll
        for (int u = 0; u < kWide; ++u) row[i + u] = part[u];
      }
#pragma unroll
      for (int j = 0; j < Tile::kColumns; j += kWide) {
        const auto part =
            shared.b.template load_vector<kWide>(Shared::B::index(buffer, k, position.column(j)));
#pragma unroll
        for (int u = 0; u < kWide; ++u) column[j + u] = part[u];
      }
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) sums[i][j] += row[i] * column[j];
      }
    }
  }

  // The sums are the results.
  template <class Shared>
  __device__ void finish(Shared&, const typename Tile::Position&) {}

  Acc sums[Tile::kRows][Tile::kColumns] = {};

 private:
  static constexpr int kWide = 16 / sizeof(Acc);
};

template <int BM, int BN, int BK, int Slices, class Acc>
class Products<SlicedTile<BM, BN, BK, Slices>, Acc> {
  using Tile = SlicedTile<BM, BN, BK, Slices>;
  static constexpr int kEdge = Tile::kEdge, kSumRow = BN + kTilePad;
  static_assert(kEdge * sizeof(Acc) == 16);

 public:
  __device__ Products()
      : slice_(threadIdx.x / Tile::kSliceThreads),
        row_(threadIdx.x % Tile::kSliceThreads / (BN / kEdge) * kEdge),
        column_(threadIdx.x % (BN / kEdge) * kEdge) {}

  // left: of the reduction, from the step's start; what lies beyond is zero.
  template <class Shared>
  __device__ void add_step(const Shared& shared, int buffer, int left) {
#pragma unroll 1
    for (int run = slice_; run < BK / Tile::kSliceRun && run * Tile::kSliceRun < left; run += Slices) {
// All loads of the run are independent: with two warps a scheduler, nothing else covers their latency.
#pragma unroll
      for (int u = 0; u < Tile::kSliceRun; ++u) {
        const int k = run * Tile::kSliceRun + u;
        const auto row = shared.a.template load_vector<kEdge>(Shared::A::index(buffer, k, row_));
        const auto column = shared.b.template load_vector<kEdge>(Shared::B::index(buffer, k, column_));
#pragma unroll
        for (int i = 0; i < kEdge; ++i) {
#pragma unroll
          for (int j = 0; j < kEdge; ++j) products_[i][j] += row[i] * column[j];
        }
      }
    }
  }

  // Adds the slices' products, in order, through the memory of the operands.
  template <class Shared>
  __device__ void finish(Shared& shared, const typename Tile::Position& position) {
    static_assert(Slices * BM * kSumRow <= Shared::A::kElements);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEdge; ++i) {
      Vector<Acc, kEdge> products;
#pragma unroll
      for (int j = 0; j < kEdge; ++j) products[j] = products_[i][j];
      shared.a.template store_vector<kEdge>((slice_ * BM + row_ + i) * kSumRow + column_, products);
    }
    __syncthreads();
#pragma unroll
    for (int slice = 0; slice < Slices; ++slice) {
      const auto part = shared.a.template load_vector<Tile::kColumns>(
          (slice * BM + position.row(0)) * kSumRow + position.column(0));
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) sums[0][j] += part[j];
    }
  }

  Acc sums[Tile::kRows][Tile::kColumns] = {};

 private:
  int slice_, row_, column_;
  Acc products_[kEdge][kEdge] = {};
};

// products.sums[i][j] = the sum of A[row(i)][k] * B[k][column(j)] over the k in [0, length); row_sum is shown
// each tile of A.
template <class Tile, class OperandA, class OperandB, class Acc, class RowSum>
__device__ inline void multiply(const OperandA& a, const OperandB& b, int length,
                                const typename Tile::Position& position, Products<Tile, Acc>& products,
                                RowSum& row_sum) {
  using Layout = SharedLayout<Acc, Tile>;
  constexpr int kBK = Tile::kBK;
  Layout& shared = shared_memory<Layout>();
  const int thread = threadIdx.x;
  TileLoader<OperandA, typename Layout::A, Tile::kThreads> load_a(a, thread);
  TileLoader<OperandB, typename Layout::B, Tile::kThreads> load_b(b, thread);

  if (length <= 0) return;
  load_a.load(a, 0, length);
  load_b.load(b, 0, length);
  load_a.store(a, shared.a, 0);
  load_b.store(b, shared.b, 0);
  __syncthreads();

  int buffer = 0;
  for (int k0 = 0; k0 < length; k0 += kBK) {
    const bool more = k0 + kBK < length;
    if (more) {
      load_a.load(a, k0 + kBK, length);
      load_b.load(b, k0 + kBK, length);
    }
    row_sum.add(shared, buffer);
    products.add_step(shared, buffer, length - k0);
    if (more) {
      load_a.store(a, shared.a, buffer ^ 1);
      load_b.store(b, shared.b, buffer ^ 1);
      __syncthreads();
      buffer ^= 1;
    }
  }
  products.finish(shared, position);
}

}  // namespace fastcnn::generic
