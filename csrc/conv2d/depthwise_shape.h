// What a thread of the fast kernels makes at a time: shared by planner and kernels.
#pragma once

#include "conv2d/depthwise_image.h"

namespace fastcnn {

// rows x columns targets of K x K taps, from a window of sources; the next thread's window, and a later
// row's, lie advance() further on.
struct DepthwiseThreadShape {
  int kernel;
  DepthwiseStep step;
  int rows;
  int columns;

  constexpr bool transposed() const { return step == DepthwiseStep::kTransposed; }
  // Transposed: whether a tile's first target meets odd taps. With "same" padding it is the image's first.
  constexpr int phase() const { return (kernel - 1) / 2 % 2; }
  // The tap at which target i meets source j of its window; not every one exists.
  constexpr int tap(int i, int j) const {
    if (transposed()) return i + kernel - 1 - phase() - 2 * j;
    return j - (step == DepthwiseStep::kTwo ? 2 : 1) * i;
  }
  constexpr int sources(int targets) const {
    if (transposed()) return (targets + kernel - 2 - phase()) / 2 + 1;
    return (targets - 1) * (step == DepthwiseStep::kTwo ? 2 : 1) + kernel;
  }
  constexpr int advance(int targets) const {
    if (transposed()) return targets / 2;
    return targets * (step == DepthwiseStep::kTwo ? 2 : 1);
  }
};

// As many rows as leave three blocks an SM their registers, and rings of wide images their shared memory.
// Seven columns: the widths of image networks are multiples of it, and lanes an odd number of pixels apart
// read from different banks. Transposed ones come in pairs.
constexpr DepthwiseThreadShape depthwise_strip_shape(int kernel, DepthwiseStep step) {
  if (step == DepthwiseStep::kTransposed) return {kernel, step, 2, kernel == 7 ? 6 : 14};
  if (step == DepthwiseStep::kTwo) return {kernel, step, 1, 7};
  return {kernel, step, kernel == 5 ? 4 : 2, 7};
}

constexpr DepthwiseThreadShape depthwise_tile_shape(int kernel, DepthwiseStep step) {
  if (step == DepthwiseStep::kTransposed) return {kernel, step, 2, 14};
  return {kernel, step, step == DepthwiseStep::kTwo ? 2 : 4, 7};
}

// Pixels of shared memory from one thread's columns to the next one's: an odd number.
constexpr int depthwise_strip_pitch(const DepthwiseThreadShape& shape) {
  return shape.advance(shape.columns) / 2 * 2 + 1;
}
constexpr int depthwise_strip_pixel(const DepthwiseThreadShape& shape, int column) {
  const int advance = shape.advance(shape.columns);
  return column + column / advance * (depthwise_strip_pitch(shape) - advance);
}

// Rows of a strip in shared memory: what the blocks that registers allow on a Hopper SM leave each other, and
// at least rows of 112 pixels of 64 bytes at 3x3.
constexpr int depthwise_strip_bytes(int kernel) {
  return (kernel == 7 ? 58 : 44) * 1024;
}
// With the weights of a block's channels.
constexpr int depthwise_strip_shared_bytes(int kernel) {
  return depthwise_strip_bytes(kernel) + kernel * kernel * kDepthwisePixelBytes;
}
// Channels of a thread.
inline constexpr int kDepthwiseStripVector = 2;
constexpr int depthwise_strip_threads(int kernel) {
  return kernel == 3 ? 256 : 128;
}
constexpr int depthwise_strip_blocks_per_sm(const DepthwiseThreadShape& shape) {
  const bool large = shape.kernel == 7 && shape.step == DepthwiseStep::kOne;
  return large || (shape.kernel == 3 && shape.transposed()) ? 2 : 3;
}

}  // namespace fastcnn
