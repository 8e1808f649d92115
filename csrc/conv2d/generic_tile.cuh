// The tile that every pass of the generic convolution shares: C += A * B through shared memory, on FMA units.
//
// A block owns BM x BN results and walks the reduction BK at a time. Operand tiles lie in shared memory
// as [k][x], so that a thread's TM rows and TN columns are read as 16-byte vectors; two buffers, so that one
// barrier a step is enough: while step i is computed, the loads of step i+1 are in flight to registers. A
// warp covers 4 x 8 threads; a thread's TM (TN) elements come in runs of 4 that lie 4*4 (8*4) apart, which
// makes each warp-wide read of A and of B one shared-memory wavefront. Bound: FMA. At 128 x 128 with 8 x 8 a
// thread, a step costs 64 FMA per 4 wide shared loads and per thread.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/generic.h"

namespace fastcnn::generic {

template <int BM_, int BN_, int BK_, int TM_, int TN_, int WarpRows_, int WarpColumns_>
struct Tile {
  static constexpr int kBM = BM_, kBN = BN_, kBK = BK_;
  static constexpr int kTM = TM_, kTN = TN_;
  static constexpr int kLaneRows = 4, kLaneColumns = 8, kRun = 4;
  static constexpr int kWarpRows = WarpRows_, kWarpColumns = WarpColumns_;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static_assert(kLaneRows * kTM * kWarpRows == kBM && kLaneColumns * kTN * kWarpColumns == kBN);
  static_assert(kTM % kRun == 0 && kTN % kRun == 0 && kThreads == kTileThreads);
};

// BK = 8 at the wide tile: with 16, the elements in flight push it past the 128 registers that let two blocks
// share an SM.
using WideTile = Tile<kWideTileShape.rows, kWideTileShape.columns, kWideTileShape.depth, 8, 8, 4, 2>;
using NarrowTile = Tile<kNarrowTileShape.rows, kNarrowTileShape.columns, kNarrowTileShape.depth, 4, 4, 8, 1>;

// Operand tiles, two buffers each. A padded row keeps 16-byte alignment and spreads transposing stores over
// banks.
template <class Acc, class Tile>
struct SharedLayout {
  static constexpr int kRowA = Tile::kBM + kTilePad, kRowB = Tile::kBN + kTilePad;
  SharedArray<Acc, 2 * Tile::kBK * kRowA> a;
  SharedArray<Acc, 2 * Tile::kBK * kRowB> b;
};

// Where this thread's results lie in the block's tile.
template <class Tile>
struct ThreadPosition {
  int row0, column0;
  __device__ explicit ThreadPosition(int thread) {
    const int lane = thread % 32, warp = thread / 32;
    row0 = (warp / Tile::kWarpColumns) * (Tile::kLaneRows * Tile::kTM) +
           (lane / Tile::kLaneColumns) * Tile::kRun;
    column0 = (warp % Tile::kWarpColumns) * (Tile::kLaneColumns * Tile::kTN) +
              (lane % Tile::kLaneColumns) * Tile::kRun;
  }
  // i and j in [0, TM) and [0, TN)
  __device__ int row(int i) const {
    return row0 + (i / Tile::kRun) * (Tile::kLaneRows * Tile::kRun) + i % Tile::kRun;
  }
  __device__ int column(int j) const {
    return column0 + (j / Tile::kRun) * (Tile::kLaneColumns * Tile::kRun) + j % Tile::kRun;
  }
};

// Brings BK x BX elements of an operand from global memory, through registers, to shared memory.
// The Operand says how neighbouring lanes walk (kAlongK: along the reduction, else along x), how many
// elements one load takes (kVector), what of an address depends on x alone (found once) and on k alone (found
// once a step).
template <class Operand, int BX, int BK, int Row, int Threads>
class TileLoader {
  using T = typename Operand::Element;
  using Acc = accumulator_t<T>;
  static constexpr int kVector = Operand::kVector;
  static constexpr bool kAlongK = Operand::kAlongK;
  static constexpr int kLanes = (kAlongK ? BK : BX) / kVector;  // threads side by side along the walked axis
  static constexpr int kStep = Threads / kLanes;  // how far apart a thread's loads are on the other
  static constexpr int kOther = kAlongK ? BX : BK;
  static constexpr int kLoads = (kOther + kStep - 1) / kStep;
  static constexpr bool kPartial = kOther % kStep != 0;  // some threads have nothing to load
  static_assert(Threads % kLanes == 0);

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
      const int k = k0 + walked_;
      const auto at_k = operand.at_k(k, k < end);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (!kPartial || other_ + i * kStep < BX) loaded_[i] = operand.load(x_[i], at_k);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = k0 + other_ + i * kStep;
        if (!kPartial || other_ + i * kStep < BK) loaded_[i] = operand.load(x_[0], operand.at_k(k, k < end));
      }
    }
  }

  template <class Shared>
  __device__ void store(const Operand& operand, Shared& shared, int buffer) const {
    constexpr int kWide = 16 / sizeof(Acc) < kVector ? 16 / sizeof(Acc) : kVector;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int other = other_ + i * kStep;
      if (kPartial && other >= kOther) continue;
      const Vector<T, kVector> values = operand.value(loaded_[i]);
      if constexpr (kAlongK) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          shared.store((buffer * BK + walked_ + v) * Row + other, to_accumulator(values[v]));
        }
      } else {
#pragma unroll
        for (int v = 0; v < kVector; v += kWide) {
          Vector<Acc, kWide> wide;
#pragma unroll
          for (int u = 0; u < kWide; ++u) wide[u] = to_accumulator(values[v + u]);
          shared.template store_vector<kWide>((buffer * BK + other) * Row + walked_ + v, wide);
        }
      }
    }
  }

 private:
  int walked_, other_;
  typename Operand::AtX x_[kAlongK ? kLoads : 1];
  typename Operand::Loaded loaded_[kLoads];
};

// For products whose rows of A nobody adds up.
struct NoRowSum {
  template <class Shared>
  __device__ void add(const Shared&, int) {}
};

// The sum of one row of A, of row `thread` of the tile: steps of BK are added up, then to the total with the
// rounding error of each addition carried along, so that the error does not grow with the length. The first
// BM threads each read their row as the product does; for the others, and where it is not wanted, it is idle.
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
    Acc step = -error_;
#pragma unroll
    for (int k = 0; k < Tile::kBK; ++k) {
      step += shared.a.load((buffer * Tile::kBK + k) * SharedLayout<Acc, Tile>::kRowA + row_);
    }
    const Acc next = total_ + step;
    error_ = next - next == Acc(0) ? (next - total_) - step : Acc(0);  // infinity and NaN have no error
    total_ = next;
  }

 private:
  int row_;
  Acc total_ = 0, error_ = 0;
};

// sums[i][j] += A[row(i)][k] * B[k][column(j)] over the k in [0, length), in order; row_sum is shown each
// tile of A.
template <class Tile, class OperandA, class OperandB, class Acc, class RowSum>
__device__ inline void multiply(const OperandA& a, const OperandB& b, int length,
                                Acc (&sums)[Tile::kTM][Tile::kTN], RowSum& row_sum) {
  using Layout = SharedLayout<Acc, Tile>;
  constexpr int kBK = Tile::kBK;
  constexpr int kWide = 16 / sizeof(Acc);
  Layout& shared = shared_memory<Layout>();
  const int thread = threadIdx.x;
  const ThreadPosition<Tile> position(thread);
  TileLoader<OperandA, Tile::kBM, kBK, Layout::kRowA, Tile::kThreads> load_a(a, thread);
  TileLoader<OperandB, Tile::kBN, kBK, Layout::kRowB, Tile::kThreads> load_b(b, thread);

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
// One step at a time: unrolled, the fragments of several steps compete for the 128 registers and spill, while
// the other warps' 64 FMAs a step already cover the shared loads.
#pragma unroll 1
    for (int k = 0; k < kBK; ++k) {
      Acc row[Tile::kTM], column[Tile::kTN];
#pragma unroll
      for (int i = 0; i < Tile::kTM; i += kWide) {
        const auto part =
            shared.a.template load_vector<kWide>((buffer * kBK + k) * Layout::kRowA + position.row(i));
#pragma unroll
        for (int u = 0; u < kWide; ++u) row[i + u] = part[u];
      }
#pragma unroll
      for (int j = 0; j < Tile::kTN; j += kWide) {
        const auto part =
            shared.b.template load_vector<kWide>((buffer * kBK + k) * Layout::kRowB + position.column(j));
#pragma unroll
        for (int u = 0; u < kWide; ++u) column[j + u] = part[u];
      }
#pragma unroll
      for (int i = 0; i < Tile::kTM; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kTN; ++j) sums[i][j] += row[i] * column[j];
      }
    }
    if (more) {
      load_a.store(a, shared.a, buffer ^ 1);
      load_b.store(b, shared.b, buffer ^ 1);
      __syncthreads();
      buffer ^= 1;
    }
  }
}

}  // namespace fastcnn::generic
