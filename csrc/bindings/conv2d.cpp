// The convolution operators: checks, allocation, and one call to the planner and to what it chose.
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/conv2d_arguments.h"
#include "bindings/device.h"
#include "bindings/register.h"
#include "bindings/tensor.h"
#include "conv2d/bias_grad.h"
#include "conv2d/plan.h"
#include "conv2d/problem.h"

namespace fastcnn {
namespace {

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

int misalignment(const Tensor& tensor) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16);
}

// Whether offsets and alignment of `like` hold for the tensor too.
bool lies_as(const Tensor& tensor, const Tensor& like) {
  for (int64_t d = 0; d < 4; ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != like.stride(d)) return false;
  }
  return misalignment(tensor) == 0 || misalignment(tensor) == misalignment(like);
}

// The tensor, dense and aligned in a layout: itself where it lies so already, else a copy.
Tensor laid_out(const Tensor& tensor, bool channels_last) {
  Tensor dense = empty_image(tensor, tensor.scalar_type(), tensor.size(0), tensor.size(1), tensor.size(2),
                             tensor.size(3), channels_last);
  if (lies_as(tensor, dense)) return tensor;
  torch::stable::copy_(dense, tensor);
  return dense;
}

// What is added to the output: checked, and lying as the output does.
Tensor residual_like(const char* op, const Tensor& residual, const Tensor& input, const Tensor& output,
                     bool channels_last) {
  check_same_dtype(residual, "residual", input, "input", op);
  check_same_device(residual, "residual", input, "input", op);
  if (residual.dim() != 4 || shape_of(residual) != shape_of(output)) {
    fail(op, ": residual must have the size of the output, ", shape_text(output),
         " (it is not broadcast), but has size ", shape_text(residual));
  }
  if (output.numel() == 0 || lies_as(residual, output)) return residual;
  return laid_out(residual, channels_last);
}

// The output, and the preactivation where it is asked for.
std::tuple<Tensor, std::optional<Tensor>> fprop(const char* op, const Tensor& input, const Tensor& weight,
                                                const std::optional<Tensor>& bias,
                                                const std::optional<Tensor>& residual,
                                                const Geometry& geometry, const std::string& activation,
                                                double negative_slope, bool with_preactivation) {
  check_operands(op, input, "input", weight, "weight");
  Conv2dParams params;
  params.dtype = dtype_of(input, op, "input");
  params.problem = checked_problem(op, shape_of(input), shape_of(weight), geometry);
  params.epilogue.activation = activation_named(op, activation);
  params.epilogue.negative_slope = checked_slope(op, params.epilogue.activation, negative_slope);
  std::optional<Tensor> dense_bias, laid_residual, preactivation;
  if (bias.has_value()) dense_bias = checked_bias(op, *bias, input, weight);
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  const auto empty_output = [&] {
    return empty_image(input, input.scalar_type(), params.problem.n, params.problem.k, params.problem.p,
                       params.problem.q, channels_last);
  };
  const Tensor output = empty_output();
  if (with_preactivation) preactivation = empty_output();
  if (residual.has_value()) laid_residual = residual_like(op, *residual, input, output, channels_last);
  if (output.numel() == 0) return {output, preactivation};
  DeviceScope scope(input);
  params.input = reading(scope, input);
  params.weight = reading(scope, weight);
  params.output = writing(scope, output);
  if (dense_bias.has_value()) params.epilogue.bias = reading_data(scope, *dense_bias);
  if (laid_residual.has_value()) params.epilogue.residual = reading_data(scope, *laid_residual);
  if (preactivation.has_value()) params.epilogue.preactivation = writing(scope, *preactivation).data;
  run(Conv2dPass::kFprop, params, scope, output);
  return {output, preactivation};
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& residual, int64_t stride_h, int64_t stride_w, int64_t pad_top,
              int64_t pad_bottom, int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w,
              int64_t groups, const std::string& activation, double negative_slope,
              bool /*allow_tf32: every path of this library so far computes in full precision*/) {
  return std::get<0>(
      fprop("conv2d()", input, weight, bias, residual,
            {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
            activation, negative_slope, false));
}

std::tuple<Tensor, Tensor> conv2d_with_preactivation(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, int64_t stride_h, int64_t stride_w, int64_t pad_top,
    int64_t pad_bottom, int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w,
    int64_t groups, const std::string& activation, double negative_slope, bool /*allow_tf32*/) {
  const auto [output, preactivation] =
      fprop("conv2d_with_preactivation()", input, weight, bias, residual,
            {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
            activation, negative_slope, true);
  return {output, *preactivation};
}

// The output gradient as dgrad and wgrad load it: alone, or with what the activation saved lying alike.
class LoadedGrad {
 public:
  LoadedGrad(const char* op, const Tensor& grad_output, const std::optional<Tensor>& saved,
             const std::string& activation, double negative_slope)
      : grad_(grad_output), saved_(saved) {
    activation_.activation = activation_named(op, activation);
    activation_.negative_slope = checked_slope(op, activation_.activation, negative_slope);
    if (!saved.has_value()) return;
    check_same_dtype(*saved, "saved", grad_output, "grad_output", op);
    check_same_device(*saved, "saved", grad_output, "grad_output", op);
    if (saved->dim() != 4 || shape_of(*saved) != shape_of(grad_output)) {
      fail(op, ": saved must have the size of grad_output, ", shape_text(grad_output), ", but has size ",
           shape_text(*saved));
    }
    if (grad_output.numel() == 0 || lies_as(*saved, grad_output)) return;
    const bool channels_last = suggests_channels_last(*saved);
    grad_ = laid_out(grad_, channels_last);
    saved_ = laid_out(*saved_, channels_last);
  }

  void give(Conv2dParams& params, DeviceScope& scope) const {
    params.grad = reading(scope, grad_);
    if (!saved_.has_value()) return;
    params.grad_activation = activation_;
    params.grad_activation.saved = reading_data(scope, *saved_);
  }

 private:
  Tensor grad_;
  std::optional<Tensor> saved_;
  GradActivation activation_;
};

Tensor dgrad(const char* op, const Tensor& grad_output, const std::optional<Tensor>& saved,
             const Tensor& weight, int64_t height, int64_t width, const Geometry& geometry,
             const std::string& activation, double negative_slope, bool channels_last) {
  check_operands(op, grad_output, "grad_output", weight, "weight");
  const Shape input{grad_output.size(0), weight.size(1) * geometry.groups, height, width};
  Conv2dParams params;
  params.dtype = dtype_of(grad_output, op, "grad_output");
  params.problem = checked_problem(op, input, shape_of(weight), geometry);
  check_grad_output(op, grad_output, params.problem);
  const LoadedGrad grad(op, grad_output, saved, activation, negative_slope);
  const Tensor output =
      empty_image(grad_output, grad_output.scalar_type(), input[0], input[1], height, width, channels_last);
  if (output.numel() == 0) return output;
  DeviceScope scope(grad_output);
  grad.give(params, scope);
  params.weight = reading(scope, weight);
  params.output = writing(scope, output);
  run(Conv2dPass::kDgrad, params, scope, output);
  return output;
}

Tensor conv2d_dgrad(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                    int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left,
                    int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                    bool channels_last, bool /*allow_tf32*/) {
  return dgrad("conv2d_dgrad()", grad_output, std::nullopt, weight, height, width,
               {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
               "none", 0, channels_last);
}

Tensor conv2d_act_dgrad(const Tensor& grad_output, const Tensor& saved, const Tensor& weight, int64_t height,
                        int64_t width, int64_t stride_h, int64_t stride_w, int64_t pad_top,
                        int64_t pad_bottom, int64_t pad_left, int64_t pad_right, int64_t dilation_h,
                        int64_t dilation_w, int64_t groups, const std::string& activation,
                        double negative_slope, bool channels_last, bool /*allow_tf32*/) {
  return dgrad("conv2d_act_dgrad()", grad_output, saved, weight, height, width,
               {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
               activation, negative_slope, channels_last);
}

// The weight's gradient, and the bias's where it is asked for, else an empty tensor in its place.
std::tuple<Tensor, Tensor> wgrad(const char* op, const Tensor& grad_output,
                                 const std::optional<Tensor>& saved, const Tensor& input, int64_t kernel_h,
                                 int64_t kernel_w, const Geometry& geometry, const std::string& activation,
                                 double negative_slope, bool with_bias, bool channels_last) {
  check_operands(op, grad_output, "grad_output", input, "input");
  const int64_t groups = geometry.groups;
  if (groups > 0 && input.size(1) % groups != 0) {
    fail(op, ": groups=", groups, " must divide the channels of input, which has size ", shape_text(input));
  }
  const Shape weight{grad_output.size(1), groups > 0 ? input.size(1) / groups : 0, kernel_h, kernel_w};
  Conv2dParams params;
  params.dtype = dtype_of(input, op, "input");
  params.problem = checked_problem(op, shape_of(input), weight, geometry);
  check_grad_output(op, grad_output, params.problem);
  const LoadedGrad grad(op, grad_output, saved, activation, negative_slope);
  const Tensor output =
      empty_image(input, input.scalar_type(), weight[0], weight[1], weight[2], weight[3], channels_last);
  const Tensor bias_grad = empty_vector(input, input.scalar_type(), with_bias ? weight[0] : 0);
  // With an empty batch the kernels run all the same: the gradient is a sum of nothing, which is zero.
  DeviceScope scope(input);
  grad.give(params, scope);
  params.input = reading(scope, input);
  params.output = writing(scope, output);
  if (with_bias) {
    scope.may_write(bias_grad.const_data_ptr(), extent_bytes(bias_grad));
    params.bias_grad = bias_grad.mutable_data_ptr();
  }
  run(Conv2dPass::kWgrad, params, scope, output);
  return {output, bias_grad};
}

Tensor conv2d_wgrad(const Tensor& grad_output, const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                    int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left,
                    int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                    bool channels_last, bool /*allow_tf32*/) {
  return std::get<0>(
      wgrad("conv2d_wgrad()", grad_output, std::nullopt, input, kernel_h, kernel_w,
            {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
            "none", 0, false, channels_last));
}

std::tuple<Tensor, Tensor> conv2d_act_wgrad(const Tensor& grad_output, const std::optional<Tensor>& saved,
                                            const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                                            int64_t stride_h, int64_t stride_w, int64_t pad_top,
                                            int64_t pad_bottom, int64_t pad_left, int64_t pad_right,
                                            int64_t dilation_h, int64_t dilation_w, int64_t groups,
                                            const std::string& activation, double negative_slope, bool bias,
                                            bool channels_last, bool /*allow_tf32*/) {
  return wgrad("conv2d_act_wgrad()", grad_output, saved, input, kernel_h, kernel_w,
               {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
               activation, negative_slope, bias, channels_last);
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
  library.impl("conv2d_with_preactivation", TORCH_BOX(&fastcnn::conv2d_with_preactivation));
  library.impl("conv2d_act_dgrad", TORCH_BOX(&fastcnn::conv2d_act_dgrad));
  library.impl("conv2d_act_wgrad", TORCH_BOX(&fastcnn::conv2d_act_wgrad));
  library.impl("conv2d_dgrad", TORCH_BOX(&fastcnn::conv2d_dgrad));
  library.impl("conv2d_wgrad", TORCH_BOX(&fastcnn::conv2d_wgrad));
  library.impl("conv2d_bias_grad", TORCH_BOX(&fastcnn::conv2d_bias_grad));
}
