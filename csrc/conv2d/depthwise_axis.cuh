// A block's part of one axis of a depthwise fprop or dgrad (depthwise_image.h).
#pragma once

#include <cuda_runtime.h>

#include "conv2d/depthwise_shape.h"

namespace fastcnn {

struct DepthwiseSpan {
  int count;   // targets; none where the class has no more
  int target;  // the first of them; each next one lies `classes` further on
  int origin;  // the source of index 0; each next one lies `dilation` further on. It may not exist:
  int low;     // the first and the one past the last that do, and that a tap meets
  int high;

  // Leaves out sources that no target of the span sees.
  __device__ void clip(const DepthwiseThreadShape& shape) { high = min(high, shape.sources(count)); }

  DepthwiseSpan() = default;

  // Takes what concerns the axis off the block's index. source_step: source indices from a class's block of
  // targets to the next one.
  __device__ DepthwiseSpan(const DepthwiseAxis& axis, int source_step, int& index) {
    int block, of_class, rest;
    index = axis.blocks.divide(index, block);
    index = axis.by_classes.divide(index, of_class);
    const int dilation = axis.dilation.divisor();
    const int in_class =
        axis.by_classes.divide(max(axis.target - axis.first - of_class + axis.classes - 1, 0));
    count = min(axis.block, in_class - block * axis.block);
    target = axis.first + of_class + block * axis.block * axis.classes;
    origin = axis.origin + axis.offset(of_class, rest) + block * source_step * dilation;
    low = axis.dilation.divide(max(-origin, 0) + dilation - 1);
    high = rest == 0 ? axis.dilation.divide(max(axis.source - origin, 0) + dilation - 1) : low;
  }
};

// The part of a block that takes all classes of its targets: targets and sources are neighbours.
__device__ inline DepthwiseSpan span_of_all_classes(const DepthwiseAxis& axis,
                                                    const DepthwiseThreadShape& shape, int& index) {
  int block, rest;
  index = axis.blocks.divide(index, block);
  DepthwiseSpan span;
  span.target = axis.first + block * axis.block * axis.classes;
  span.count = min(axis.block * axis.classes, axis.target - span.target);
  span.origin = axis.origin + block * shape.advance(axis.block) * axis.dilation.divisor();
  const int in_class = axis.by_classes.divide(span.count + axis.classes - 1);
  const int seen =
      axis.offset(axis.classes - 1, rest) + axis.dilation.divisor() * (shape.sources(in_class) - 1) + 1;
  span.low = max(-span.origin, 0);
  span.high = min(max(axis.source - span.origin, 0), seen);
  return span;
}

}  // namespace fastcnn
