// The arguments of the convolution operators: their checks, and the problem they pose. Messages say what
// fastcnn/_checks.py says.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "bindings/tensor.h"
#include "conv2d/problem.h"

namespace fastcnn {

// The arguments that the three passes share.
struct Geometry {
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

using Shape = std::array<int64_t, 4>;

inline Shape shape_of(const Tensor& tensor) {
  return {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
}

inline std::string text(const Shape& shape) {
  return "[" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ", " + std::to_string(shape[2]) +
         ", " + std::to_string(shape[3]) + "]";
}

inline void check_operands(const char* op, const Tensor& first, const char* first_name, const Tensor& second,
                           const char* second_name) {
  check_4d(first, op, first_name, "N, C, H, W");
  check_4d(second, op, second_name, "N, C, H, W");
  dtype_of(first, op, first_name);
  check_same_dtype(second, second_name, first, first_name, op);
  check_same_device(second, second_name, first, first_name, op);
}

inline void check_geometry(const char* op, const Geometry& g) {
  if (g.stride_h <= 0 || g.stride_w <= 0) {
    fail(op, ": stride must be positive (non-positive stride is not supported), but is ",
         pair_text(g.stride_h, g.stride_w));
  }
  if (g.pad_top < 0 || g.pad_bottom < 0 || g.pad_left < 0 || g.pad_right < 0) {
    fail(op, ": padding must not be negative (negative padding is not supported), but is top ", g.pad_top,
         ", bottom ", g.pad_bottom, ", left ", g.pad_left, ", right ", g.pad_right);
  }
  if (g.dilation_h <= 0 || g.dilation_w <= 0) {
    fail(op, ": dilation must be positive (non-positive dilation is not supported), but is ",
         pair_text(g.dilation_h, g.dilation_w));
  }
  if (g.groups <= 0) {
    fail(op, ": groups must be positive (non-positive groups is not supported), but is ", g.groups);
  }
}

// How far the dilated kernel reaches, and the padded image it moves over. Everything that a kernel adds up to
// find a coordinate stays far inside 32 bits.
inline int64_t checked_output_size(const char* op, int64_t size, int64_t pad_before, int64_t pad_after,
                                   int64_t kernel, int64_t dilation, int64_t stride) {
  constexpr int64_t kMost = int64_t{1} << 28;
  for (const int64_t value : {size, pad_before, pad_after, kernel, dilation, stride}) {
    if (value > kMost)
      fail(op, ": a size, padding, dilation or stride of ", value, " is more than kernels can index");
  }
  if (size < 0) fail(op, ": height and width must not be negative, but one is ", size);
  const int64_t padded = size + pad_before + pad_after;
  const int64_t reach = dilation * (kernel - 1) + 1;
  if (reach > padded) {
    fail(op, ": kernel size can't be greater than actual input size: the padded input has ", padded,
         " rows or columns, the dilated kernel ", reach);
  }
  return (padded - reach) / stride + 1;
}

// The problem that input and weight of these sizes pose.
inline Conv2dProblem checked_problem(const char* op, const Shape& input, const Shape& weight,
                                     const Geometry& g) {
  check_geometry(op, g);
  if (weight[2] < 1 || weight[3] < 1) {
    fail(op, ": the kernel of weight must be at least 1x1, but weight has size ", text(weight));
  }
  if (weight[0] < 1 || weight[0] % g.groups != 0) {
    fail(op, ": given groups=", g.groups, ", the first dimension of weight must be a positive multiple of ",
         g.groups, ", but weight has size ", text(weight));
  }
  if (input[1] % g.groups != 0 || input[1] / g.groups != weight[1]) {
    fail(op, ": given groups=", g.groups, ", weight of size ", text(weight), ", expected input", text(input),
         " to have ", weight[1], " * groups channels, but got ", input[1], " channels instead");
  }
  if (input[1] == 0 || input[2] == 0 || input[3] == 0) {
    fail(op, ": only the batch of input may be empty, but input has size ", text(input));
  }
  const int64_t p =
      checked_output_size(op, input[2], g.pad_top, g.pad_bottom, weight[2], g.dilation_h, g.stride_h);
  const int64_t q =
      checked_output_size(op, input[3], g.pad_left, g.pad_right, weight[3], g.dilation_w, g.stride_w);
  Conv2dProblem problem;
  problem.n = checked_int(input[0], op, "the batch");
  problem.c = checked_int(input[1], op, "the number of input channels");
  problem.h = static_cast<int>(input[2]);
  problem.w = static_cast<int>(input[3]);
  problem.k = checked_int(weight[0], op, "the number of output channels");
  problem.r = static_cast<int>(weight[2]);
  problem.s = static_cast<int>(weight[3]);
  problem.p = static_cast<int>(p);
  problem.q = static_cast<int>(q);
  problem.stride_h = static_cast<int>(g.stride_h);
  problem.stride_w = static_cast<int>(g.stride_w);
  problem.pad_top = static_cast<int>(g.pad_top);
  problem.pad_left = static_cast<int>(g.pad_left);
  problem.dilation_h = static_cast<int>(g.dilation_h);
  problem.dilation_w = static_cast<int>(g.dilation_w);
  problem.groups = static_cast<int>(g.groups);
  return problem;
}

inline Shape output_shape(const Conv2dProblem& problem) {
  return {problem.n, problem.k, problem.p, problem.q};
}

inline void check_grad_output(const char* op, const Tensor& grad_output, const Conv2dProblem& problem) {
  const Shape expected = output_shape(problem);
  if (shape_of(grad_output) != expected) {
    fail(op, ": grad_output has size ", shape_text(grad_output), ", but these arguments give ",
         text(expected));
  }
}

// The bias, dense.
inline Tensor checked_bias(const char* op, const Tensor& bias, const Tensor& input, const Tensor& weight) {
  check_same_dtype(bias, "bias", input, "input", op);
  check_same_device(bias, "bias", input, "input", op);
  if (bias.dim() != 1 || bias.size(0) != weight.size(0)) {
    fail(op, ": given weight of size ", shape_text(weight), ", expected bias to be 1-dimensional with ",
         weight.size(0), " elements, but got bias of size ", shape_text(bias), " instead");
  }
  return bias.is_contiguous() ? bias : torch::stable::contiguous(bias);
}

inline Activation activation_named(const char* op, const std::string& name) {
  static constexpr std::pair<const char*, Activation> kNames[] = {
      {"none", Activation::kNone},           {"relu", Activation::kRelu},
      {"sigmoid", Activation::kSigmoid},     {"tanh", Activation::kTanh},
      {"silu", Activation::kSilu},           {"gelu", Activation::kGelu},
      {"hardswish", Activation::kHardswish}, {"leaky_relu", Activation::kLeakyRelu}};
  std::string allowed;
  for (const auto& [known, activation] : kNames) {
    if (name == known) return activation;
    allowed += (allowed.empty() ? "" : ", ") + std::string(known);
  }
  fail(op, ": activation must be one of ", allowed, ", but is '", name, "'");
}

inline NegativeSlope checked_slope(const char* op, Activation activation, double slope) {
  if (activation == Activation::kLeakyRelu && !(slope >= 0 && slope <= std::numeric_limits<double>::max())) {
    fail(op, ": negative_slope must be finite and not negative, but is ", slope);
  }
  return slope;
}

}  // namespace fastcnn
