// 1x1 convolution in half precision: what its kernel is launched with, plan and launcher.
//
// Every pass is one product, result[row][column] = sum over l of A[row][l] * B[column][l]:
//                rows            columns         l
//   fprop NHWC   output pixels   filters         channels
//   fprop NCHW   filters         output pixels   channels
//   dgrad NHWC   output pixels   channels        filters     each pixel's sum stands in the first input pixel
//   dgrad NCHW   channels        output pixels   filters     of its cell of the stride; zeros in the others
//   wgrad        filters         channels        output pixels, cut into splits
// so that what the result has side by side in memory are columns. Each operand is a tensor seen along two
// axes, its rows (B's: the columns) and the reduction l; either may be the one that lies contiguous.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/chip.h"
#include "common/fastdiv.h"
#include "conv2d/problem.h"

namespace fastcnn {

// Where the elements along one axis stand: pixels of images, or channels (a line).
struct PointwiseAxis {
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;  // 0 where never walked
  FastDiv image, width;                              // pixels of an image, of a row
  int extent = 0;
  bool line = true;  // stride_w from end to end

  __host__ __device__ int64_t offset(int index) const {
    if (line) return index * stride_w;
    int pixel, w;
    const int n = image.divide(index, pixel);
    const int h = width.divide(pixel, w);
    return n * stride_n + h * stride_h + w * stride_w;
  }
};

struct PointwiseOperand {
  const void* data = nullptr;
  GradActivation activation;  // of the output gradient
  PointwiseAxis row, reduction;
  // Elements that always lie side by side and aligned, along the axis that the tile has so; 1: lanes run
  // along it.
  int vector = 1;
};

struct PointwiseParams {
  PointwiseOperand a, b;
  void* output = nullptr;
  PointwiseAxis out_row, out_column;
  int store_vector = 1;  // columns that a lane stores at a time, of partial sums too; 1: lanes run along them
  Epilogue epilogue;
  bool bias_vector = false;  // biases are columns' and aligned as 8
  bool pixels_in_rows = true;
  // dgrad: input pixels of an output pixel's cell, those that exist, and how far they are apart.
  int cell_h = 1, cell_w = 1, image_h = 0, image_w = 0;
  int64_t cell_stride_h = 0, cell_stride_w = 0;
  bool cell_pairs = false;            // the first two pixels of a cell's rows are aligned words
  FastDiv image_pixels, image_width;  // of the output image, the pixels that are counted
  // wgrad
  void* bias_grad = nullptr;
  float* partials = nullptr;  // of each split [rows][columns], then [rows] of the bias; null with one split
  int64_t split_elements = 0;

  int reduction = 0, steps = 0, split_steps = 0;
  int tile_rows = 0, tile_columns = 0;  // at most the kernel's: what a block takes of it
  bool row_tiles_first = false;         // neighbouring blocks take neighbouring row tiles
  FastDiv row_tiles, column_tiles, tiles;
  int items = 0;  // tiles x splits
};

// A block's tile, the warps over its rows, columns and reduction, and the blocks that shall share an SM.
struct PointwiseTileShape {
  int rows, columns, depth;
  int row_warps, column_warps, depth_warps;
  int blocks;
  constexpr int threads() const { return 32 * row_warps * column_warps * depth_warps; }
};
enum class PointwiseTile { kWide, kNarrow, kSmall };
inline constexpr PointwiseTileShape kPointwiseWide{128, 128, 32, 2, 4, 1, 2};
inline constexpr PointwiseTileShape kPointwiseNarrow{128, 64, 32, 2, 2, 1, 3};
inline constexpr PointwiseTileShape kPointwiseSmall{32, 32, 128, 1, 1, 4, 3};
inline constexpr const PointwiseTileShape& pointwise_shape(PointwiseTile tile) {
  return tile == PointwiseTile::kWide     ? kPointwiseWide
         : tile == PointwiseTile::kNarrow ? kPointwiseNarrow
                                          : kPointwiseSmall;
}
inline constexpr int kPointwiseStages = 3;
inline constexpr int kPointwisePad = 8;  // elements between a tile's lines in shared memory

// Which axis of an operand's tile lies side by side in shared memory: the reduction (along), or its rows.
enum class PointwiseLie { kBothAlong, kAlongAcross, kBothAcross };  // of A and B

struct PointwisePlan {
  PointwiseParams params;  // but for addresses
  PointwiseTile tile = PointwiseTile::kNarrow;
  PointwiseLie lie = PointwiseLie::kBothAlong;
  int splits = 1;
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
  std::string text, reason;
};

// Nothing where this path does not cover the problem: see the reasons in pointwise_plan.cpp.
std::optional<PointwisePlan> plan_pointwise(Conv2dPass pass, const Conv2dParams& params, const Chip& chip);

void launch_pointwise(Conv2dPass pass, const Conv2dParams& params, const PointwisePlan& plan,
                      cudaStream_t stream);

namespace pointwise {
// Each element type and way to lie has a .cu file of its own.
template <class T, PointwiseLie Lie>
void launch_mma(Conv2dPass pass, const PointwiseParams& params, const PointwisePlan& plan,
                cudaStream_t stream);
}  // namespace pointwise

}  // namespace fastcnn
