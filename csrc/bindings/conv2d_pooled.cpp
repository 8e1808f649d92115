// Convolution, activation and 2 x 2 max pool as one operator: one kernel where the planner has one, else the
// two kernels one after the other.
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/conv2d_arguments.h"
#include "bindings/device.h"
#include "bindings/register.h"
#include "bindings/tensor.h"
#include "conv2d/plan.h"
#include "conv2d/pooled.h"
#include "conv2d/problem.h"
#include "pool2d/kernels.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// Null offsets are not kept.
void run_separately(const Conv2dParams& fused, DeviceScope& scope, const Tensor& pooled,
                    const TensorView& offsets, bool channels_last) {
  Conv2dParams conv = fused;
  const Conv2dProblem& problem = conv.problem;
  const Tensor image =
      empty_image(pooled, pooled.scalar_type(), problem.n, problem.k, problem.p, problem.q, channels_last);
  conv.output = writing(scope, image);
  const Conv2dPlan plan = plan_conv2d(Conv2dPass::kFprop, conv, scope.chip());
  std::optional<Tensor> workspace;
  if (plan.workspace_bytes > 0) {
    workspace = empty_vector(pooled, ScalarType::Byte, static_cast<int64_t>(plan.workspace_bytes));
    scope.may_write(workspace->const_data_ptr(), plan.workspace_bytes);
    conv.workspace = workspace->mutable_data_ptr();
  }
  run_conv2d(Conv2dPass::kFprop, conv, plan, scope.stream());

  Pool2dCall pool;
  pool.dtype = conv.dtype;
  pool.index = offsets.data == nullptr ? Pool2dIndex::kNone : Pool2dIndex::kUint8Offset;
  pool.channels_last = channels_last;
  pool.problem.n = problem.n;
  pool.problem.c = problem.k;
  pool.problem.h = problem.p;
  pool.problem.w = problem.q;
  pool.problem.p = problem.p / kPooledWindow;
  pool.problem.q = problem.q / kPooledWindow;
  pool.problem.kernel_h = pool.problem.kernel_w = kPooledWindow;
  pool.problem.stride_h = pool.problem.stride_w = kPooledWindow;
  pool.input = conv.output;
  pool.output = fused.output;
  pool.indices = offsets;
  launch_pool2d(pool, plan_pool2d(pool, scope.chip()), scope.stream());
}

// The pooled result, and the offsets where they are asked for.
std::tuple<Tensor, std::optional<Tensor>> fprop(const char* op, const Tensor& input, const Tensor& weight,
                                                const std::optional<Tensor>& bias, const Geometry& geometry,
                                                const std::string& activation, double negative_slope,
                                                bool with_offsets) {
  check_operands(op, input, "input", weight, "weight");
  Conv2dParams params;
  params.dtype = dtype_of(input, op, "input");
  params.problem = checked_problem(op, shape_of(input), shape_of(weight), geometry);
  params.epilogue.activation = activation_named(op, activation);
  params.epilogue.negative_slope = checked_slope(op, params.epilogue.activation, negative_slope);
  const Conv2dProblem& problem = params.problem;
  if (problem.p < kPooledWindow || problem.q < kPooledWindow) {
    fail(op, ": output size is too small: the convolution gives ", pair_text(problem.p, problem.q),
         " pixels, the pool's window takes (2, 2)");
  }
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) dense_bias = checked_bias(op, *bias, input, weight);
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  const auto empty_output = [&](ScalarType dtype) {
    return empty_image(input, dtype, problem.n, problem.k, problem.p / kPooledWindow,
                       problem.q / kPooledWindow, channels_last);
  };
  const Tensor output = empty_output(input.scalar_type());
  std::optional<Tensor> offsets;
  if (with_offsets) offsets = empty_output(ScalarType::Byte);
  if (output.numel() == 0) return {output, offsets};
  DeviceScope scope(input);
  params.input = reading(scope, input);
  params.weight = reading(scope, weight);
  params.output = writing(scope, output);
  if (dense_bias.has_value()) params.epilogue.bias = reading_data(scope, *dense_bias);
  TensorView offset_view;
  if (with_offsets) offset_view = writing(scope, *offsets);
  const PooledPlan plan = plan_pooled(params, offset_view, scope.chip());
  if (plan.fused) {
    launch_pooled(plan, params.dtype, scope.stream());
  } else {
    run_separately(params, scope, output, offset_view, channels_last);
  }
  return {output, offsets};
}

Tensor conv2d_act_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom,
                             int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w,
                             int64_t groups, const std::string& activation, double negative_slope,
                             bool /*allow_tf32: computed in full precision*/) {
  return std::get<0>(
      fprop("conv2d_act_max_pool2d()", input, weight, bias,
            {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
            activation, negative_slope, false));
}

std::tuple<Tensor, Tensor> conv2d_act_max_pool2d_with_offsets(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_h,
    int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left, int64_t pad_right,
    int64_t dilation_h, int64_t dilation_w, int64_t groups, const std::string& activation,
    double negative_slope, bool /*allow_tf32*/) {
  const auto [output, offsets] =
      fprop("conv2d_act_max_pool2d_with_offsets()", input, weight, bias,
            {stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups},
            activation, negative_slope, true);
  return {output, *offsets};
}

}  // namespace
}  // namespace fastcnn

FASTCNN_REGISTER(FASTCNN_DISPATCH_KEY, library) {
  library.impl("conv2d_act_max_pool2d", TORCH_BOX(&fastcnn::conv2d_act_max_pool2d));
  library.impl("conv2d_act_max_pool2d_with_offsets", TORCH_BOX(&fastcnn::conv2d_act_max_pool2d_with_offsets));
}
