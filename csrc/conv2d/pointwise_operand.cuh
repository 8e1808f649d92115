// An operand's tiles of a 1x1 convolution, from global to shared memory.
//
// A tile is lines of elements that lie side by side in both memories: rows of the product by a piece of the
// reduction, or the other way round. It moves in chunks of 8 elements: 16-byte cp.async where the tensor is
// aligned to that, two of 8 bytes where to that (14x14 images in NCHW), else through registers one element at
// a time. On its way back through an activation, the output gradient waits in shared memory beside what the
// activation saved, until the thread that copied both joins them. What does not exist is zero in both
// operands: no product of it can be NaN. Lines are padded by 16 bytes, which puts 8 neighbouring ones into
// different banks for ldmatrix.
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

struct Range {
  int first, end;
};

// One thread's share of the chunks, at one tile of rows.
template <class Tile>
class OperandLoader {
  using T = typename Tile::T;
  using Stages = typename Tile::Stages;

 public:
  __device__ explicit OperandLoader(const PointwiseOperand& operand) : operand_(operand) {}

  // From now on these rows of the product.
  __device__ void enter(const Range& rows) {
#pragma unroll
    for (int i = 0; i < kRowOffsets; ++i) {
      const int row = rows.first + (Tile::kAcross ? column() : line() + i * Tile::kLineStep);
      row_offset_[i] = row < rows.end ? operand_.row.offset(row) : -1;
    }
  }

  // Piece number `step` of the reduction to a stage, and of `saved` where the activation has one; reduction
  // is the whole's length. rows() gives again what was entered: to be remembered it would take registers.
  template <class Rows>
  __device__ void bring(Stages& stages, Stages* saved, int stage, int step, int reduction,
                        Rows&& rows) const {
#pragma unroll 1
    for (int copy = 0; copy < (saved == nullptr ? 1 : 2); ++copy) {
      Stages& to = copy == 0 ? stages : *saved;
      const T* data = static_cast<const T*>(copy == 0 ? operand_.data : operand_.activation.saved);
      if (operand_.vector == 8) {
        bring_wide(to, data, stage, step, reduction);
      } else {
        bring_narrow(to, data, stage, step, reduction, rows());
      }
    }
  }

  // Joins this thread's own chunks of a stage, once they have arrived.
  __device__ void apply_activation(Stages& stages, const Stages& saved, int stage) const {
#pragma unroll 1
    for (int i = 0; i < Tile::kChunks; ++i) {
      const int at = chunk(stage, i);
      const auto grad = stages.template load_vector<kChunk>(at),
                 at_grad = saved.template load_vector<kChunk>(at);
      stages.template store_vector<kChunk>(at, through_activation(operand_.activation, grad, at_grad));
    }
  }

 private:
  // This thread's first chunk.
  __device__ static int line() { return threadIdx.x / Tile::kLineChunks; }
  __device__ static int column() { return threadIdx.x % Tile::kLineChunks * kChunk; }

  static constexpr int kRowOffsets = Tile::kAcross ? 1 : Tile::kChunks;

  __device__ int chunk(int stage, int i) const {
    return stage * Tile::kElements + (line() + i * Tile::kLineStep) * Tile::kPitch + column();
  }

  __device__ void bring_wide(Stages& stages, const T* data, int stage, int step, int reduction) const {
    const int first_l = step * Tile::kDepth + (Tile::kAcross ? line() : column());
    const int64_t first_offset =
        Tile::kAcross || first_l >= reduction ? 0 : operand_.reduction.offset(first_l);
#pragma unroll
    for (int i = 0; i < Tile::kChunks; ++i) {
      const int l = first_l + (Tile::kAcross ? i * Tile::kLineStep : 0);
      const int64_t row = row_offset_[Tile::kAcross ? 0 : i];
      const bool exists = row >= 0 && l < reduction;
      const int64_t offset = row + (Tile::kAcross ? operand_.reduction.offset(l) : first_offset);
      ptx::cp_async<16>(stages.address(chunk(stage, i)), data + (exists ? offset : 0), exists);
    }
  }

  // Elements of a chunk may belong to several rows of an image, or images: their places are walked along.
  __device__ void bring_narrow(Stages& stages, const T* data, int stage, int step, int reduction,
                               const Range& rows) const {
    const PointwiseAxis& across = Tile::kAcross ? operand_.reduction : operand_.row;
    const PointwiseAxis& along = Tile::kAcross ? operand_.row : operand_.reduction;
    const int first_l = step * Tile::kDepth;
    const int first_line = line() + (Tile::kAcross ? first_l : rows.first);
    const int line_end = Tile::kAcross ? reduction : rows.end;
    const int first = column() + (Tile::kAcross ? rows.first : first_l);
    const int count = (Tile::kAcross ? rows.end : reduction) - first;  // elements until the end
    const int64_t first_offset = count > 0 ? along.offset(first) : 0;
    int start_pixel, start_w;
    along.image.divide(count > 0 ? first : 0, start_pixel);
    along.width.divide(start_pixel, start_w);
#pragma unroll 1
    for (int i = 0; i < Tile::kChunks; ++i) {
      const int line = first_line + i * Tile::kLineStep;
      const int left = line < line_end ? count : 0;
      int64_t offset = first_offset + (left > 0 ? across.offset(line) : 0);
      int pixel = start_pixel, w = start_w;
      const auto walk = [&](int elements) {
        offset += elements * along.stride_w;
        if ((w += elements) == along.width.divisor()) w = 0, offset += along.next_row;
        if ((pixel += elements) == along.image.divisor()) pixel = 0, offset += along.next_image;
      };
#pragma unroll 1
      for (int v = 0; v < kChunk; v += 4) {
        const int to = chunk(stage, i) + v;
        if (operand_.vector == 4) {
          ptx::cp_async<8>(stages.address(to), data + (v < left ? offset : 0), v < left);
          walk(4);
        } else {
          Vector<T, 4> values;
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            values[u] = load_global_if(v + u < left, data + offset);
            walk(1);
          }
          stages.template store_vector<4>(to, values);
        }
      }
    }
  }

  const PointwiseOperand& operand_;
  int64_t row_offset_[kRowOffsets];  // -1: no such row
};

}  // namespace fastcnn::pointwise
