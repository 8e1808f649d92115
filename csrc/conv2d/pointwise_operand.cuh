// An operand's tiles of a 1x1 convolution, from global to shared memory.
//
// A tile is lines of elements that lie side by side in both memories: rows of the product by a piece of the
// reduction, or the other way round. It moves in chunks of 8 elements: 16-byte cp.async where the tensor is
// aligned to that, two of 8 bytes where to that (14x14 images in NCHW). Where to neither (7x7 images in NCHW,
// a stride there, an odd C in NHWC), lanes run along the lines and elements go one by one through registers:
// a warp's load is 32 neighbours of few sectors, and a thread has up to 16 loads in flight before it waits.
// Shifting aligned vectors into place instead takes about as many instructions and wavefronts (8 elements:
// three 8-byte loads, 9 shifts and selections, one store, and twice that where a row or image ends in
// between), and the tensor's ends apart. On its way back through an activation, the output gradient waits in
// shared memory beside what the activation saved, until a thread joins both. What does not exist is zero in
// both operands: no product of it can be NaN. Lines are padded by 16 bytes, which puts 8 neighbouring ones
// into different banks for ldmatrix.
#pragma once

#include <cuda_runtime.h>

#include "common/memory.cuh"
#include "common/shared.cuh"
#include "conv2d/grad_activation.cuh"
#include "conv2d/pointwise_item.cuh"
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
  // Element by element: from one line of a thread to its next, loads of a thread, and those that fly
  // together.
  static constexpr int kLoadStep = Threads / kLine, kLoads = kLines / kLoadStep;
  static constexpr int kFlight = kLoads < 16 ? kLoads : 16;
  static_assert(kLine % 32 == 0 && kLoadStep * kLine == Threads && kLoads % kFlight == 0);
  using Stages = SharedArray<T, kPointwiseStages * kElements>;
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
      const int across = operand_.vector == 1 ? place() : column();
      const int row = rows.first + (Tile::kAcross ? across : line() + i * Tile::kLineStep);
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
      } else if (operand_.vector == 4) {
        bring_narrow(to, data, stage, step, reduction, rows());
      } else {
        bring_elements(to, data, stage, step, reduction, rows());
      }
    }
  }

  // Joins this thread's chunks of a stage, once they have arrived: its own copies, or, of single elements,
  // what others stored before the last barrier.
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
  // Its place in all lines where lanes run along them.
  __device__ static int place() { return threadIdx.x % Tile::kLine; }

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

  // The tile's axes, and the first line and element of a piece of it.
  struct Piece {
    const PointwiseAxis &across, &along;
    int first_line, line_end, first, end;
  };
  __device__ Piece piece(int step, int reduction, const Range& rows) const {
    const int first_l = step * Tile::kDepth;
    if constexpr (Tile::kAcross) {
      return {operand_.reduction, operand_.row, first_l, reduction, rows.first, rows.end};
    } else {
      return {operand_.row, operand_.reduction, rows.first, rows.end, first_l, reduction};
    }
  }

  // Halves of a chunk may belong to two rows of an image, or images.
  __device__ void bring_narrow(Stages& stages, const T* data, int stage, int step, int reduction,
                               const Range& rows) const {
    const Piece tile = piece(step, reduction, rows);
    int64_t offset[2];  // -1: not there
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = tile.first + column() + half * 4;
      offset[half] = first < tile.end ? tile.along.offset(first) : -1;
    }
#pragma unroll 1
    for (int i = 0; i < Tile::kChunks; ++i) {
      const int line = tile.first_line + this->line() + i * Tile::kLineStep;
      const int64_t line_offset = line < tile.line_end ? tile.across.offset(line) : -1;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool exists = line_offset >= 0 && offset[half] >= 0;
        ptx::cp_async<8>(stages.address(chunk(stage, i) + half * 4),
                         data + (exists ? line_offset + offset[half] : 0), exists);
      }
    }
  }

  // Lanes run along the lines: a load of a warp is 32 neighbours, whatever their alignment, and each thread
  // has one place in its lines.
  __device__ void bring_elements(Stages& stages, const T* data, int stage, int step, int reduction,
                                 const Range& rows) const {
    const Piece tile = piece(step, reduction, rows);
    const int line = tile.first_line + threadIdx.x / Tile::kLine, place = tile.first + this->place();
    const bool exists = place < tile.end && line < tile.line_end;
    const int lines = exists ? tile.line_end - line : 0;  // until the end
    const T* from = data + (exists ? Tile::kAcross ? row_offset_[0] : tile.along.offset(place) : 0);
    const int to = stage * Tile::kElements + threadIdx.x / Tile::kLine * Tile::kPitch + this->place();
    if (tile.across.line) {
      const int64_t apart = Tile::kLoadStep * tile.across.stride_w;
      from += line * tile.across.stride_w;
      copy_elements<Tile::kFlight>(stages, to, lines, [&](int) {
        const T* source = from;
        from += apart;
        return source;
      });
    } else {
      // The warp's lines are the same for all its lanes: each finds the place of one of them.
      static_assert(Tile::kLoads <= 32);
      const int one = line + threadIdx.x % 32 * Tile::kLoadStep;
      const int64_t offset = one < tile.line_end ? tile.across.offset(one) : 0;
      copy_elements<Tile::kFlight / 2>(
          stages, to, lines, [&](int load) { return from + __shfl_sync(0xffffffffu, offset, load); });
    }
  }

  // From address(load), of the lines that exist; the loads of a flight wait for memory together.
  template <int Flight, class Address>
  __device__ static void copy_elements(Stages& stages, int to, int lines, Address&& address) {
#pragma unroll 1
    for (int i = 0; i < Tile::kLoads; i += Flight) {
      T values[Flight];
#pragma unroll
      for (int u = 0; u < Flight; ++u) {
        const T* source = address(i + u);
        values[u] = load_global_if((i + u) * Tile::kLoadStep < lines, source);
      }
#pragma unroll
      for (int u = 0; u < Flight; ++u) {
        stages.store(to + (i + u) * Tile::kLoadStep * Tile::kPitch, values[u]);
      }
    }
  }

  const PointwiseOperand& operand_;
  int64_t row_offset_[kRowOffsets];  // -1: no such row
};

}  // namespace fastcnn::pointwise
