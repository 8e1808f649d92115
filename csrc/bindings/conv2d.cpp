// The convolution operators: checks, allocation, and one call to the planner and to what it chose. Messages
// say what fastcnn/_checks.py says.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "bindings/device.h"
#include "bindings/register.h"
#include "bindings/tensor.h"
#include "conv2d/bias_grad.h"
#include "conv2d/plan.h"
#include "conv2d/problem.h"

namespace fastcnn {
namespace {

// The arguments that the three passes share.
struct Geometry {
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

using Shape = std::array<int64_t, 4>;

Shape shape_of(const Tensor& tensor) {
  return {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
}

std::string text(const Shape& shape) {
  return "[" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ", " + std::to_string(shape[2]) +
         ", " + std::to_string(shape[3]) + "]";
}

void check_operands(const char* op, const Tensor& first, const char* first_name, const Tensor& second,
                    const char* second_name) {
  check_4d(first, op, first_name, "N, C, H, W");
  check_4d(second, op, second_name, "N, C, H, W");
  dtype_of(first, op, first_name);
  check_same_dtype(second, second_name, first, first_name, op);
  check_same_device(second, second_name, first, first_name, op);
}

void check_geometry(const char* op, const Geometry& g) {
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
int64_t checked_output_size(const char* op, int64_t size, int64_t pad_before, int64_t pad_after,
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
Conv2dProblem checked_problem(const char* op, const Shape& input, const Shape& weight, const Geometry& g) {
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

void check_grad_output(const char* op, const Tensor& grad_output, const Conv2dProblem& problem) {
  const Shape expected{problem.n, problem.k, problem.p, problem.q};
  if (shape_of(grad_output) != expected) {
    fail(op, ": grad_output has size ", shape_text(grad_output), ", but these arguments give ",
         text(expected));
  }
}

Activation activation_named(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "tanh") return Activation::kTanh;
  fail(op, ": activation must be one of none, relu, sigmoid, tanh, but is '", name, "'");
}

// Memory of a call's own, until its launches are enqueued; null for no bytes.
class Workspace {
 public:
  Workspace(DeviceScope& scope, const Tensor& like, size_t bytes) {
    if (bytes == 0) return;
    memory_ = empty_vector(like, ScalarType::Byte, static_cast<int64_t>(bytes));
    scope.may_write(memory_->const_data_ptr(), bytes);
  }
  void* data() const { return memory_.has_value() ? memory_->mutable_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> memory_;
};

// Plans, provides the workspace, launches. The tensors in params are set.
void run(Conv2dPass pass, Conv2dParams& params, DeviceScope& scope, const Tensor& output) {
  const Conv2dPlan plan = plan_conv2d(pass, params, scope.chip());
  const Workspace workspace(scope, output, plan.workspace_bytes);
  params.workspace = workspace.data();
  run_conv2d(pass, params, plan, scope.stream());
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_h,
              int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left, int64_t pad_right,
              int64_t dilation_h, int64_t dilation_w, int64_t groups, const std::string& activation,
              bool /*allow_tf32: every path of this library so far computes in full precision*/) {
  constexpr const char* kOp = "conv2d()";
  check_operands(kOp, input, "input", weight, "weight");
  Conv2dParams params;
  params.dtype = dtype_of(input, kOp, "input");
  params.problem = checked_problem(
      kOp, shape_of(input), shape_of(weight),
      {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups});
  params.epilogue.activation = activation_named(kOp, activation);
  const Tensor* dense_bias = bias.has_value() ? &*bias : nullptr;
  std::optional<Tensor> bias_copy;
  if (bias.has_value()) {
    check_same_dtype(*bias, "bias", input, "input", kOp);
    check_same_device(*bias, "bias", input, "input", kOp);
    if (bias->dim() != 1 || bias->size(0) != params.problem.k) {
      fail(kOp, ": given weight of size ", shape_text(weight), ", expected bias to be 1-dimensional with ",
           params.problem.k, " elements, but got bias of size ", shape_text(*bias), " instead");
    }
    if (!bias->is_contiguous()) dense_bias = &bias_copy.emplace(torch::stable::contiguous(*bias));
  }
  const Tensor output =
      empty_image(input, input.scalar_type(), params.problem.n, params.problem.k, params.problem.p,
                  params.problem.q, suggests_channels_last(input) || suggests_channels_last(weight));
  if (output.numel() == 0) return output;
  DeviceScope scope(input);
  params.input = reading(scope, input);
  params.weight = reading(scope, weight);
  params.output = writing(scope, output);
  if (dense_bias != nullptr) {
    scope.may_read(dense_bias->const_data_ptr(), extent_bytes(*dense_bias));
    params.epilogue.bias = dense_bias->const_data_ptr();
  }
  run(Conv2dPass::kFprop, params, scope, output);
  return output;
}

Tensor conv2d_dgrad(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                    int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left,
                    int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                    bool channels_last, bool /*allow_tf32*/) {
  constexpr const char* kOp = "conv2d_dgrad()";
  check_operands(kOp, grad_output, "grad_output", weight, "weight");
  const Shape input{grad_output.size(0), weight.size(1) * groups, height, width};
  Conv2dParams params;
  params.dtype = dtype_of(grad_output, kOp, "grad_output");
  params.problem = checked_problem(
      kOp, input, shape_of(weight),
      {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups});
  check_grad_output(kOp, grad_output, params.problem);
  const Tensor output =
      empty_image(grad_output, grad_output.scalar_type(), input[0], input[1], height, width, channels_last);
  if (output.numel() == 0) return output;
  DeviceScope scope(grad_output);
  params.grad = reading(scope, grad_output);
  params.weight = reading(scope, weight);
  params.output = writing(scope, output);
  run(Conv2dPass::kDgrad, params, scope, output);
  return output;
}

Tensor conv2d_wgrad(const Tensor& grad_output, const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                    int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left,
                    int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                    bool channels_last, bool /*allow_tf32*/) {
  constexpr const char* kOp = "conv2d_wgrad()";
  check_operands(kOp, grad_output, "grad_output", input, "input");
  if (groups > 0 && input.size(1) % groups != 0) {
    fail(kOp, ": groups=", groups, " must divide the channels of input, which has size ", shape_text(input));
  }
  const Shape weight{grad_output.size(1), groups > 0 ? input.size(1) / groups : 0, kernel_h, kernel_w};
  Conv2dParams params;
  params.dtype = dtype_of(input, kOp, "input");
  params.problem = checked_problem(
      kOp, shape_of(input), weight,
      {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups});
  check_grad_output(kOp, grad_output, params.problem);
  const Tensor output =
      empty_image(input, input.scalar_type(), weight[0], weight[1], weight[2], weight[3], channels_last);
  // With an empty batch the kernels run all the same: the gradient is a sum of nothing, which is zero.
  DeviceScope scope(input);
  params.grad = reading(scope, grad_output);
  params.input = reading(scope, input);
  params.output = writing(scope, output);
  run(Conv2dPass::kWgrad, params, scope, output);
  return output;
}

Tensor conv2d_bias_grad(const Tensor& grad_output) {
  constexpr const char* kOp = "conv2d_bias_grad()";
  check_4d(grad_output, kOp, "grad_output", "N, K, P, Q");
  BiasGradParams params;
  params.dtype = dtype_of(grad_output, kOp, "grad_output");
  params.n = checked_int(grad_output.size(0), kOp, "the batch");
  params.k = checked_int(grad_output.size(1), kOp, "the number of channels");
  params.p = checked_int(grad_output.size(2), kOp, "the height");
  params.q = checked_int(grad_output.size(3), kOp, "the width");
  const Tensor output = empty_vector(grad_output, grad_output.scalar_type(), params.k);
  if (output.numel() == 0) return output;
  DeviceScope scope(grad_output);
  params.grad = reading(scope, grad_output);
  scope.may_write(output.const_data_ptr(), extent_bytes(output));
  params.output = output.mutable_data_ptr();
  const BiasGradPlan plan = plan_bias_grad(params, scope.chip());
  const Workspace workspace(scope, output, plan.workspace_bytes);
  params.workspace = workspace.data();
  launch_bias_grad(params, plan, scope.stream());
  return output;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_REGISTER(FASTCNN_DISPATCH_KEY, library) {
  library.impl("conv2d", TORCH_BOX(&fastcnn::conv2d));
  library.impl("conv2d_dgrad", TORCH_BOX(&fastcnn::conv2d_dgrad));
  library.impl("conv2d_wgrad", TORCH_BOX(&fastcnn::conv2d_wgrad));
  library.impl("conv2d_bias_grad", TORCH_BOX(&fastcnn::conv2d_bias_grad));
}
