// From a convolution to the problem that the fast depthwise kernels solve: what their planners share.
#pragma once

#include <numeric>
#include <optional>

#include "common/ceil_div.h"
#include "conv2d/depthwise_image.h"

namespace fastcnn::depthwise {

struct DepthwiseTensors {
  const TensorView& source;
  const TensorView& target;
};

inline DepthwiseTensors tensors_of(Conv2dPass pass, const Conv2dParams& params) {
  if (pass == Conv2dPass::kDgrad) return {params.grad, params.output};
  return {params.input, params.output};
}

// The step of an axis; nothing where it has none.
inline std::optional<DepthwiseStep> step_of(bool dgrad, int stride, int dilation) {
  if (dgrad) {
    if (dilation % stride == 0) return DepthwiseStep::kOne;
    if (stride == 2 && dilation == 1) return DepthwiseStep::kTransposed;
    return std::nullopt;
  }
  const int step = stride / std::gcd(stride, dilation);
  if (step == 1) return DepthwiseStep::kOne;
  if (step == 2) return DepthwiseStep::kTwo;
  return std::nullopt;
}

// All of it but the blocks. image and output are the extents of x and y.
inline DepthwiseAxis axis_of(bool dgrad, int image, int output, int kernel, int stride, int pad,
                             int dilation) {
  DepthwiseAxis axis;
  if (!dgrad) {
    axis.source = image;
    axis.target = output;
    axis.classes = dilation / std::gcd(stride, dilation);
    axis.origin = -pad;
    axis.offset_step = stride;
    axis.dilation = FastDiv(dilation);
  } else if (dilation % stride == 0) {
    // Target h meets tap r at p where h + pad = stride * p + dilation * r.
    axis.source = output;
    axis.target = image;
    axis.classes = dilation;
    axis.origin = pad / stride - dilation / stride * (kernel - 1);
    axis.offset_step = 1;
    axis.offset_shift = pad % stride;
    axis.offset_divisor = FastDiv(stride);
    axis.dilation = FastDiv(dilation / stride);
  } else {
    // Target h is at h + pad = 2 * p + r. Tiles start where h + pad is even or odd, as the shape has it.
    const int phase = (kernel - 1) / 2 % 2;
    axis.source = output;
    axis.target = image;
    axis.first = (pad - phase) % 2 == 0 ? 0 : -1;
    axis.origin = (axis.first + pad - phase) / 2 + (2 * phase + 1 - kernel) / 2;
  }
  axis.by_classes = FastDiv(axis.classes);
  return axis;
}

inline int64_t class_targets(const DepthwiseAxis& axis) {
  return ceil_div(axis.target - axis.first, axis.classes);
}

// The part of a class's threads' targets that exist, where `group` of them are made at a time.
inline double useful_part(const DepthwiseAxis& axis, int64_t group) {
  return static_cast<double>(axis.target) /
         static_cast<double>(axis.classes * ceil_div(class_targets(axis), group) * group);
}

inline void set_block(DepthwiseAxis& axis, int64_t block) {
  axis.block = static_cast<int>(block);
  axis.blocks = FastDiv(static_cast<int>(ceil_div(class_targets(axis), block)));
}

// What the kernels of square filters share: the step of both axes.
inline std::optional<DepthwiseStep> common_step(Conv2dPass pass, const Conv2dProblem& problem) {
  const bool dgrad = pass == Conv2dPass::kDgrad;
  const auto step = step_of(dgrad, problem.stride_h, problem.dilation_h);
  const bool common = problem.r == problem.s && (problem.r == 3 || problem.r == 5 || problem.r == 7) &&
                      step == step_of(dgrad, problem.stride_w, problem.dilation_w);
  return common ? step : std::nullopt;
}

inline DepthwiseAxis rows_of(Conv2dPass pass, const Conv2dProblem& problem) {
  return axis_of(pass == Conv2dPass::kDgrad, problem.h, problem.p, problem.r, problem.stride_h,
                 problem.pad_top, problem.dilation_h);
}

inline DepthwiseAxis columns_of(Conv2dPass pass, const Conv2dProblem& problem) {
  return axis_of(pass == Conv2dPass::kDgrad, problem.w, problem.q, problem.s, problem.stride_w,
                 problem.pad_left, problem.dilation_w);
}

inline DepthwiseImageParams image_of(Conv2dPass pass, const Conv2dProblem& problem, DepthwiseStep step,
                                     const DepthwiseAxis& rows, const DepthwiseAxis& columns) {
  DepthwiseImageParams image;
  image.rows = rows;
  image.columns = columns;
  image.channels = problem.c;
  image.flip = pass == Conv2dPass::kDgrad && step == DepthwiseStep::kOne;
  return image;
}

}  // namespace fastcnn::depthwise
