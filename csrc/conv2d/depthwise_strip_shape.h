// What a thread of the strip kernels makes at a time: shared by planner and kernel.
#pragma once

#include "conv2d/depthwise_image.h"

namespace fastcnn {

// Rows in shared memory: what the blocks that registers allow on a Hopper SM leave each other, and at least
// rows of 112 pixels of 64 bytes at 3x3.
constexpr int depthwise_strip_bytes(int kernel) {
  return (kernel == 7 ? 58 : 44) * 1024;
}

// kRows x kColumns targets (K x K taps), from source rows and columns of which neighbouring threads, and
// later rows, see those kRowStep and kColumnStep further on.
struct DepthwiseStripShape {
  int kernel;
  DepthwiseStep step;

  constexpr bool transposed() const { return step == DepthwiseStep::kTransposed; }
  // Seven columns: the widths of image networks are multiples of it. Transposed ones come in pairs.
  constexpr int columns() const { return transposed() ? (kernel == 7 ? 6 : 14) : 7; }
  constexpr int rows() const { return step == DepthwiseStep::kTwo ? 1 : 2; }

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
  // Pixels of shared memory from one thread's columns to the next one's: an odd number, so that the lanes of
  // a warp read from different banks.
  constexpr int pitch() const { return advance(columns()) / 2 * 2 + 1; }
  constexpr int tile_pixel(int column) const {
    return column + column / advance(columns()) * (pitch() - advance(columns()));
  }

  constexpr int max_threads() const { return kernel == 7 ? 128 : 256; }
  constexpr int blocks_per_sm() const {
    if (kernel == 7) return 3;
    return kernel == 3 && !transposed() ? 3 : 2;
  }
};

}  // namespace fastcnn
