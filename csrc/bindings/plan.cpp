// The `plan` operator: what the planner would choose for dense tensors of a layout, as JSON text. No tensors,
// no GPU.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/device.h"
#include "bindings/tensor.h"
#include "common/plan_text.h"
#include "conv2d/plan.h"
#include "conv2d/pooled.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fail("plan(): dtype must be float32, float16, bfloat16 or float64, but is '", name, "'");
}

Chip chip_named(const std::string& name) {
  if (name.empty()) return current_chip();
  const std::optional<Chip> chip = chip_by_name(name);
  if (!chip.has_value()) fail("plan(): chip must be one of ", kChipNames, ", but is '", name, "'");
  return *chip;
}

TensorView dense_view(int64_t c, int64_t h, int64_t w, bool channels_last) {
  TensorView view;
  view.stride_n = c * h * w;
  view.stride_c = channels_last ? 1 : h * w;
  view.stride_h = channels_last ? c * w : w;
  view.stride_w = channels_last ? c : 1;
  return view;
}

int checked_size(int64_t value) {
  return checked_int(value, "plan()", "a size");
}

void check_positive(std::initializer_list<int> values) {
  for (const int value : values) {
    if (value < 1) fail("plan(): sizes, stride, dilation and groups must be positive, but one is ", value);
  }
}

// problem: n c h w, k r s, p q, stride_h stride_w, pad_top pad_left, dilation_h dilation_w, groups
Conv2dParams conv_params(Conv2dPass pass, const std::vector<int64_t>& sizes, DType dtype,
                         bool channels_last) {
  if (sizes.size() != 16)
    fail("plan(): a convolution's problem has 16 numbers, but ", sizes.size(), " were given");
  int at = 0;
  const auto next = [&] { return checked_size(sizes[at++]); };
  Conv2dParams params;
  Conv2dProblem& problem = params.problem;
  for (int* field : {&problem.n, &problem.c, &problem.h, &problem.w, &problem.k, &problem.r, &problem.s,
                     &problem.p, &problem.q, &problem.stride_h, &problem.stride_w, &problem.pad_top,
                     &problem.pad_left, &problem.dilation_h, &problem.dilation_w, &problem.groups}) {
    *field = next();
  }
  check_positive({problem.c, problem.h, problem.w, problem.k, problem.r, problem.s, problem.p, problem.q,
                  problem.stride_h, problem.stride_w, problem.dilation_h, problem.dilation_w,
                  problem.groups});
  if (problem.c % problem.groups != 0 || problem.k % problem.groups != 0) {
    fail("plan(): groups=", problem.groups, " must divide ", problem.c, " channels and ", problem.k,
         " filters");
  }
  params.dtype = dtype;
  const TensorView input = dense_view(problem.c, problem.h, problem.w, channels_last);
  const TensorView weight = dense_view(problem.channels_per_group(), problem.r, problem.s, channels_last);
  const TensorView output = dense_view(problem.k, problem.p, problem.q, channels_last);
  params.input = input;
  params.weight = weight;
  params.grad = output;
  params.output = pass == Conv2dPass::kFprop ? output : (pass == Conv2dPass::kDgrad ? input : weight);
  return params;
}

// Without a kernel for the whole: the convolution's plan, the pool being another launch.
PlanText plan_conv_pool(const std::vector<int64_t>& sizes, DType dtype, bool channels_last,
                        const Chip& chip) {
  Conv2dParams params = conv_params(Conv2dPass::kFprop, sizes, dtype, channels_last);
  const Conv2dProblem& problem = params.problem;
  const int p = problem.p / kPooledWindow, q = problem.q / kPooledWindow;
  check_positive({problem.n, p, q});
  Conv2dParams fused = params;
  fused.output = dense_view(problem.k, p, q, channels_last);
  const PooledPlan plan = plan_pooled(fused, TensorView{}, chip);
  if (plan.fused) return describe(plan);
  PlanText text = describe(plan_conv2d(Conv2dPass::kFprop, params, chip), Conv2dPass::kFprop);
  text.reason = plan.reason + "; the convolution: " + text.reason;
  return text;
}

// problem: n c h w, p q, adaptive, kernel_h kernel_w, stride_h stride_w, pad_h pad_w, dilation_h dilation_w
PlanText plan_pool(Pool2dOp op, const std::vector<int64_t>& sizes, DType dtype, bool channels_last,
                   const Chip& chip) {
  if (sizes.size() != 15) fail("plan(): a pool's problem has 15 numbers, but ", sizes.size(), " were given");
  Pool2dProblem problem;
  int adaptive = 0, at = 0;
  for (int* field : {&problem.n, &problem.c, &problem.h, &problem.w, &problem.p, &problem.q, &adaptive,
                     &problem.kernel_h, &problem.kernel_w, &problem.stride_h, &problem.stride_w,
                     &problem.pad_h, &problem.pad_w, &problem.dilation_h, &problem.dilation_w}) {
    *field = checked_size(sizes[at++]);
  }
  problem.adaptive = adaptive != 0;
  check_positive({problem.c, problem.h, problem.w, problem.p, problem.q, problem.kernel_h, problem.kernel_w,
                  problem.stride_h, problem.stride_w, problem.dilation_h, problem.dilation_w});
  Pool2dCall call;
  call.problem = problem;
  call.op = op;
  call.dtype = dtype;
  call.channels_last = channels_last;
  const TensorView large = dense_view(problem.c, problem.h, problem.w, channels_last);
  const TensorView small = dense_view(problem.c, problem.p, problem.q, channels_last);
  call.input = pool2d_walks_input(op) ? small : large;
  call.output = pool2d_walks_input(op) ? large : small;
  const bool maximum = op == Pool2dOp::kMaxFprop || op == Pool2dOp::kMaxBprop;
  if (maximum) {
    call.index = problem.adaptive ? Pool2dIndex::kInt64Flat : Pool2dIndex::kUint8Offset;
    call.indices = small;
  }
  const Pool2dPlan plan = plan_pool2d(call, chip);
  PlanText text;
  text.kernel = plan.kernel;
  text.tile = plan.tile;
  text.reason = plan.reason;
  text.grid = plan.grid;
  text.threads = plan.threads;
  text.shared_bytes = plan.shared_bytes;
  text.splits = plan.splits;
  return text;
}

std::string plan(const std::string& op, std::vector<int64_t> problem, const std::string& dtype_text,
                 bool channels_last, const std::string& chip_text) {
  const DType dtype = dtype_named(dtype_text);
  const Chip chip = chip_named(chip_text);
  const auto conv = [&](Conv2dPass pass) {
    const Conv2dParams params = conv_params(pass, problem, dtype, channels_last);
    return to_json(describe(plan_conv2d(pass, params, chip), pass));
  };
  const auto pool = [&](Pool2dOp pool_op) {
    return to_json(plan_pool(pool_op, problem, dtype, channels_last, chip));
  };
  if (op == "conv2d_fprop") return conv(Conv2dPass::kFprop);
  if (op == "conv2d_dgrad") return conv(Conv2dPass::kDgrad);
  if (op == "conv2d_wgrad") return conv(Conv2dPass::kWgrad);
  if (op == "conv2d_act_max_pool2d") return to_json(plan_conv_pool(problem, dtype, channels_last, chip));
  if (op == "max_pool2d") return pool(Pool2dOp::kMaxFprop);
  if (op == "max_pool2d_backward") return pool(Pool2dOp::kMaxBprop);
  if (op == "avg_pool2d") return pool(Pool2dOp::kAverageFprop);
  if (op == "avg_pool2d_backward") return pool(Pool2dOp::kAverageBprop);
  fail(
      "plan(): op must be conv2d_fprop, conv2d_dgrad, conv2d_wgrad, conv2d_act_max_pool2d, max_pool2d, "
      "max_pool2d_backward, avg_pool2d ",
      "or avg_pool2d_backward, but is '", op, "'");
}

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CompositeExplicitAutograd, library) {
  library.impl("plan", TORCH_BOX(&fastcnn::plan));
}
