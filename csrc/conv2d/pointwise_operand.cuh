// An operand's tiles of a 1x1 convolution, from global to shared memory.
//
// A tile is lines of elements that lie side by side in both memories: rows of the product by a piece of the
// reduction, or the other way round. It moves in chunks of 8 elements: 16-byte cp.async where the tensor is
// aligned to that, two of 8 bytes where to that (14x14 images in NCHW), else through registers one element at
// a time; the output gradient on its way back through an activation goes through registers, too. What does
// not exist is zero in both operands: no product of it can be NaN. Lines are padded by 16 bytes, which puts 8
// neighbouring ones into different banks for ldmatrix.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/pointwise.h"
#include "ptx/cp_async.cuh"

namespace fastcnn::pointwise {

inline constexpr int kChunk = 8;  // elements, 16 bytes

// Rows x Depth of the product; Across: rows lie side by side.
template <class T_, int Rows, int Depth, bool Across_, int Threads>
struct OperandTile {
  using T = T_;
  static constexpr bool kAcross = Across_;
  static constexpr int kDepth = Depth;
  static constexpr int kLine = Across_ ? Rows : Depth, kLines = Across_ ? Depth : Rows;
  static constexpr int kPitch = kLine + kPointwisePad;
  static constexpr int kElements = kLines * kPitch;
  static constexpr int kLineChunks = kLine / kChunk;
  static constexpr int kLineStep = Threads / kLineChunks;  // from one chunk of a thread to its next
  static constexpr int kChunks = kLines / kLineStep;       // of a thread
  static_assert(kLineStep * kLineChunks == Threads && kChunks * kLineStep == kLines);
  using Stages = SharedArray<T, kPointwiseStages * kElements>;
};

// One thread's share of the chunks, at one tile of rows.
template <class Tile>
class OperandLoader {
  using T = typename Tile::T;

 public:
  __device__ explicit OperandLoader(const PointwiseOperand& operand)
      : operand_(operand),
        line_(threadIdx.x / Tile::kLineChunks),
        column_(threadIdx.x % Tile::kLineChunks * kChunk) {}

  // From now on rows first to end of the product.
  __device__ void enter(int first, int end) {
    first_ = first;
    end_ = end;
#pragma unroll
    for (int i = 0; i < kRowOffsets; ++i) {
      const int row = first + (Tile::kAcross ? column_ : line_ + i * Tile::kLineStep);
      row_offset_[i] = row < end ? operand_.row.offset(row) : -1;
    }
  }

  // Piece number `step` of the reduction to a stage; reduction is the whole's length.
  __device__ void bring(typename Tile::Stages& stages, int stage, int step, int reduction) const {
    const bool plain = operand_.activation.saved == nullptr;
    if (plain && operand_.vector == 8) {
      bring_wide(stages, stage, step, reduction);
    } else if (plain && operand_.vector == 4) {
      bring_halves(stages, stage, step, reduction);
    } else if (operand_.vector == 8) {
      bring_loaded<8>(stages, stage, step, reduction);
    } else {
      bring_loaded<1>(stages, stage, step, reduction);
    }
  }

 private:
  static constexpr int kRowOffsets = Tile::kAcross ? 1 : Tile::kChunks;

  __device__ const T* data() const { return static_cast<const T*>(operand_.data); }

  __device__ void bring_wide(typename Tile::Stages& stages, int stage, int step, int reduction) const {
    const int to = stage * Tile::kElements + line_ * Tile::kPitch + column_;
    const int first_l = step * Tile::kDepth + (Tile::kAcross ? line_ : column_);
    const int64_t first_offset =
        Tile::kAcross || first_l >= reduction ? 0 : operand_.reduction.offset(first_l);
#pragma unroll
    for (int i = 0; i < Tile::kChunks; ++i) {
      const int l = first_l + (Tile::kAcross ? i * Tile::kLineStep : 0);
      const int64_t row = row_offset_[Tile::kAcross ? 0 : i];
      const bool exists = row >= 0 && l < reduction;
      const int64_t offset = row + (Tile::kAcross ? operand_.reduction.offset(l) : first_offset);
      ptx::cp_async<16>(stages.address(to + i * Tile::kLineStep * Tile::kPitch),
                        data() + (exists ? offset : 0), exists);
    }
  }

  // Part number `part` of V elements of this thread's chunks: whether it exists, and where.
  template <int V>
  __device__ bool find_part(int part, int step, int reduction, int& to, int64_t& offset) const {
    const int line = line_ + part / (kChunk / V) * Tile::kLineStep;
    const int column = column_ + part % (kChunk / V) * V;
    const int row = first_ + (Tile::kAcross ? column : line);
    const int l = step * Tile::kDepth + (Tile::kAcross ? line : column);
    const bool exists = row < end_ && l < reduction;
    to = line * Tile::kPitch + column;
    offset = exists ? operand_.row.offset(row) + operand_.reduction.offset(l) : 0;
    return exists;
  }

  __device__ void bring_halves(typename Tile::Stages& stages, int stage, int step, int reduction) const {
#pragma unroll 1
    for (int part = 0; part < Tile::kChunks * 2; ++part) {
      int to;
      int64_t offset;
      const bool exists = find_part<4>(part, step, reduction, to, offset);
      ptx::cp_async<8>(stages.address(stage * Tile::kElements + to), data() + offset, exists);
    }
  }

  template <int V>
  __device__ void bring_loaded(typename Tile::Stages& stages, int stage, int step, int reduction) const {
#pragma unroll 2
    for (int part = 0; part < Tile::kChunks * (kChunk / V); ++part) {
      int to;
      int64_t offset;
      const bool exists = find_part<V>(part, step, reduction, to, offset);
      const Vector<T, V> values = load_grad_if<V>(exists, operand_.activation, data(), offset);
      stages.template store_vector<V>(stage * Tile::kElements + to, values);
    }
  }

  const PointwiseOperand& operand_;
  int line_, column_;  // of the first chunk
  int first_ = 0, end_ = 0;
  int64_t row_offset_[kRowOffsets];  // -1: no such row
};

}  // namespace fastcnn::pointwise
