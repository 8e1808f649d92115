// The pooling operators: checks, output sizes as torch's pooling_output_shape, allocation, and one call to
// the planner and its launcher. Messages say what fastcnn/_checks.py says.
#include "pool2d/problem.h"

#include <cstdint>
#include <string>
#include <tuple>

#include "bindings/device.h"
#include "bindings/register.h"
#include "bindings/tensor.h"
#include "pool2d/kernels.h"
#include "pool2d/plan.h"

namespace fastcnn {
namespace {

// One axis of a sliding pool as the operator's arguments name it.
struct SlidingAxis {
  int64_t kernel, stride, pad, dilation;
};

struct Sliding {
  SlidingAxis h, w;
  bool ceil_mode;
};

// max_pool2d -> "max_pool2d()", as messages begin.
std::string title(const char* op) {
  return std::string(op) + "()";
}

int64_t floor_divide(int64_t a, int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

// The last window must start inside the image or its left padding.
int64_t output_size(int64_t size, const SlidingAxis& axis, bool ceil_mode) {
  const int64_t room = size + 2 * axis.pad - axis.dilation * (axis.kernel - 1) - 1;
  int64_t count = floor_divide(room + (ceil_mode ? axis.stride - 1 : 0), axis.stride) + 1;
  if (ceil_mode && (count - 1) * axis.stride >= size + axis.pad) --count;
  return count;
}

void check_image(const char* op, int64_t n, int64_t c, int64_t h, int64_t w) {
  if (c == 0 || h == 0 || w == 0) {
    fail(title(op), ": only the batch of input may be empty, but input has size [", n, ", ", c, ", ", h, ", ",
         w, "]");
  }
}

// What keeps every position of a window, padding included, inside 32 bits.
void check_indexable(const char* op, const SlidingAxis& axis) {
  constexpr int64_t kLargest = int64_t{1} << 29;
  for (const int64_t value : {axis.kernel, axis.pad, axis.dilation, axis.stride}) {
    if (value > kLargest) {
      fail(title(op), ": kernel_size, stride, padding and dilation may each be at most ", kLargest,
           ", but one is ", value);
    }
  }
}

void check_sliding(const char* op, const Sliding& pool) {
  const auto& [h, w, ceil_mode] = pool;
  if (h.kernel <= 0 || w.kernel <= 0) {
    fail(title(op), ": kernel_size must be greater than zero, but is ", pair_text(h.kernel, w.kernel));
  }
  if (h.stride <= 0 || w.stride <= 0) {
    fail(title(op), ": stride must be greater than zero, but is ", pair_text(h.stride, w.stride));
  }
  if (h.dilation <= 0 || w.dilation <= 0) {
    fail(title(op), ": dilation must be greater than zero, but is ", pair_text(h.dilation, w.dilation));
  }
  if (h.pad < 0 || w.pad < 0) {
    fail(title(op), ": padding must be non-negative, but is ", pair_text(h.pad, w.pad));
  }
  check_indexable(op, h);
  check_indexable(op, w);
  if (h.pad > h.kernel / 2 || w.pad > w.kernel / 2) {
    fail(title(op), ": padding (pad) should be at most half of the kernel size, but padding is ",
         pair_text(h.pad, w.pad), " and kernel_size ", pair_text(h.kernel, w.kernel));
  }
}

Pool2dProblem sliding_problem(const char* op, int64_t n, int64_t c, int64_t height, int64_t width,
                              const Sliding& pool) {
  check_image(op, n, c, height, width);
  check_sliding(op, pool);
  const int64_t p = output_size(height, pool.h, pool.ceil_mode);
  const int64_t q = output_size(width, pool.w, pool.ceil_mode);
  if (p < 1 || q < 1) {
    fail(title(op), ": output size is too small: input of size ", height, " x ", width, " with kernel_size ",
         pair_text(pool.h.kernel, pool.w.kernel), ", dilation ", pair_text(pool.h.dilation, pool.w.dilation),
         " and padding ", pair_text(pool.h.pad, pool.w.pad), " gives (", p, " x ", q, ")");
  }
  Pool2dProblem problem;
  problem.n = checked_int(n, op, "the batch");
  problem.c = checked_int(c, op, "the number of channels");
  problem.h = checked_int(height, op, "the height");
  problem.w = checked_int(width, op, "the width");
  checked_int(height + 2 * pool.h.pad, op, "the padded height");
  checked_int(width + 2 * pool.w.pad, op, "the padded width");
  problem.p = checked_int(p, op, "the output height");
  problem.q = checked_int(q, op, "the output width");
  problem.kernel_h = static_cast<int>(pool.h.kernel);
  problem.kernel_w = static_cast<int>(pool.w.kernel);
  problem.stride_h = static_cast<int>(pool.h.stride);
  problem.stride_w = static_cast<int>(pool.w.stride);
  problem.pad_h = static_cast<int>(pool.h.pad);
  problem.pad_w = static_cast<int>(pool.w.pad);
  problem.dilation_h = static_cast<int>(pool.h.dilation);
  problem.dilation_w = static_cast<int>(pool.w.dilation);
  return problem;
}

Pool2dProblem adaptive_problem(const char* op, int64_t n, int64_t c, int64_t height, int64_t width, int64_t p,
                               int64_t q) {
  check_image(op, n, c, height, width);
  if (p < 0 || q < 0) {
    fail(title(op), ": elements of output_size must be greater than or equal to 0, but are ",
         pair_text(p, q));
  }
  Pool2dProblem problem;
  problem.adaptive = true;
  problem.n = checked_int(n, op, "the batch");
  problem.c = checked_int(c, op, "the number of channels");
  problem.h = checked_int(height, op, "the height");
  problem.w = checked_int(width, op, "the width");
  problem.p = checked_int(p, op, "the output height");
  problem.q = checked_int(q, op, "the output width");
  return problem;
}

DType checked_dtype(const Tensor& tensor, const char* op, const char* argument) {
  const std::string name = title(op);
  check_4d(tensor, name.c_str(), argument, "N, C, H, W");
  return dtype_of(tensor, name.c_str(), argument);
}

// Small windows remember the place of their maximum in one byte.
Pool2dIndex offset_index(const char* op, const Sliding& pool) {
  // The kernel sides are at most 2^30 here, so the product cannot overflow.
  const int64_t area = pool.h.kernel * pool.w.kernel;
  if (area > INT32_MAX) {
    fail(title(op), ": kernel_size ", pair_text(pool.h.kernel, pool.w.kernel),
         " is too large for offsets in the window; ask for indices in the plane instead");
  }
  return area <= 256 ? Pool2dIndex::kUint8Offset : Pool2dIndex::kInt32Offset;
}

ScalarType index_type(Pool2dIndex index) {
  switch (index) {
    case Pool2dIndex::kUint8Offset:
      return ScalarType::Byte;
    case Pool2dIndex::kInt32Offset:
      return ScalarType::Int;
    default:
      return ScalarType::Long;
  }
}

// What the dtype of `indices` says they are, checked against what the window allows.
Pool2dIndex checked_indices(const char* op, const Tensor& indices, const Tensor& other,
                            const char* other_name, const Pool2dProblem& problem, const Sliding* pool) {
  Pool2dIndex index = Pool2dIndex::kInt64Flat;
  if (indices.scalar_type() != ScalarType::Long) {
    if (pool == nullptr) fail(title(op), ": indices must be int64");
    index = offset_index(op, *pool);
    if (indices.scalar_type() != index_type(index)) {
      fail(title(op), ": indices must be int64 or, for kernel_size ",
           pair_text(pool->h.kernel, pool->w.kernel), ", ",
           index == Pool2dIndex::kUint8Offset ? "uint8" : "int32");
    }
  }
  check_same_device(indices, "indices", other, other_name, title(op).c_str());
  if (indices.dim() != 4 || indices.size(0) != problem.n || indices.size(1) != problem.c ||
      indices.size(2) != problem.p || indices.size(3) != problem.q) {
    fail(title(op), ": indices have size ", shape_text(indices), ", but these arguments give [", problem.n,
         ", ", problem.c, ", ", problem.p, ", ", problem.q, "]");
  }
  return index;
}

void check_grad_output(const char* op, const Tensor& grad_output, const Pool2dProblem& problem) {
  if (grad_output.size(2) != problem.p || grad_output.size(3) != problem.q) {
    fail(title(op), ": grad_output has size ", shape_text(grad_output), ", but these arguments give [",
         problem.n, ", ", problem.c, ", ", problem.p, ", ", problem.q, "]");
  }
}

Tensor allocate(const Tensor& like, const Pool2dCall& call, ScalarType dtype) {
  const Pool2dProblem& problem = call.problem;
  const bool walks_input = pool2d_walks_input(call.op);
  return empty_image(like, dtype, problem.n, problem.c, walks_input ? problem.h : problem.p,
                     walks_input ? problem.w : problem.q, call.channels_last);
}

// Runs a call whose problem, op, dtype, index and layout are set. `indices` is null where the op has none.
void run(Pool2dCall& call, const Tensor& input, const Tensor* indices, bool write_indices,
         const Tensor& output) {
  if (output.numel() == 0) return;
  DeviceScope scope(input);
  call.input = reading(scope, input);
  call.output = writing(scope, output);
  if (indices != nullptr) {
    call.indices = write_indices ? writing(scope, *indices) : reading(scope, *indices);
  }
  launch_pool2d(call, plan_pool2d(call, scope.chip()), scope.stream());
}

Tensor run_simple(Pool2dCall& call, const Tensor& input) {
  const Tensor output = allocate(input, call, input.scalar_type());
  run(call, input, nullptr, false, output);
  return output;
}

Tensor run_reading_indices(Pool2dCall& call, const Tensor& input, const Tensor& indices) {
  const Tensor output = allocate(input, call, input.scalar_type());
  run(call, input, &indices, false, output);
  return output;
}

std::tuple<Tensor, Tensor> run_writing_indices(Pool2dCall& call, const Tensor& input) {
  const Tensor output = allocate(input, call, input.scalar_type());
  const Tensor indices = allocate(input, call, index_type(call.index));
  run(call, input, &indices, true, output);
  return {output, indices};
}

Pool2dCall max_fprop_call(const char* op, const Tensor& input, const Sliding& pool) {
  Pool2dCall call;
  call.op = Pool2dOp::kMaxFprop;
  call.dtype = checked_dtype(input, op, "input");
  call.problem = sliding_problem(op, input.size(0), input.size(1), input.size(2), input.size(3), pool);
  call.channels_last = suggests_channels_last(input);
  return call;
}

Tensor max_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, bool ceil_mode) {
  const Sliding pool{
      {kernel_h, stride_h, pad_h, dilation_h}, {kernel_w, stride_w, pad_w, dilation_w}, ceil_mode};
  Pool2dCall call = max_fprop_call("max_pool2d", input, pool);
  return run_simple(call, input);
}

std::tuple<Tensor, Tensor> max_pool2d_with_offsets(const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                                                   int64_t stride_h, int64_t stride_w, int64_t pad_h,
                                                   int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                                                   bool ceil_mode) {
  constexpr const char* kOp = "max_pool2d_with_offsets";
  const Sliding pool{
      {kernel_h, stride_h, pad_h, dilation_h}, {kernel_w, stride_w, pad_w, dilation_w}, ceil_mode};
  Pool2dCall call = max_fprop_call(kOp, input, pool);
  call.index = offset_index(kOp, pool);
  return run_writing_indices(call, input);
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                                                   int64_t stride_h, int64_t stride_w, int64_t pad_h,
                                                   int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                                                   bool ceil_mode) {
  const Sliding pool{
      {kernel_h, stride_h, pad_h, dilation_h}, {kernel_w, stride_w, pad_w, dilation_w}, ceil_mode};
  Pool2dCall call = max_fprop_call("max_pool2d_with_indices", input, pool);
  call.index = Pool2dIndex::kInt64Flat;
  return run_writing_indices(call, input);
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, int64_t height, int64_t width,
                           int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                           int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                           bool ceil_mode, bool channels_last) {
  constexpr const char* kOp = "max_pool2d_backward";
  const Sliding pool{
      {kernel_h, stride_h, pad_h, dilation_h}, {kernel_w, stride_w, pad_w, dilation_w}, ceil_mode};
  Pool2dCall call;
  call.op = Pool2dOp::kMaxBprop;
  call.dtype = checked_dtype(grad_output, kOp, "grad_output");
  call.problem = sliding_problem(kOp, grad_output.size(0), grad_output.size(1), height, width, pool);
  check_grad_output(kOp, grad_output, call.problem);
  call.index = checked_indices(kOp, indices, grad_output, "grad_output", call.problem, &pool);
  call.channels_last = channels_last;
  return run_reading_indices(call, grad_output, indices);
}

Tensor max_pool2d_gather(const Tensor& input, const Tensor& indices, int64_t kernel_h, int64_t kernel_w,
                         int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                         int64_t dilation_w, bool ceil_mode) {
  constexpr const char* kOp = "max_pool2d_gather";
  const Sliding pool{
      {kernel_h, stride_h, pad_h, dilation_h}, {kernel_w, stride_w, pad_w, dilation_w}, ceil_mode};
  Pool2dCall call = max_fprop_call(kOp, input, pool);
  call.op = Pool2dOp::kMaxGather;
  call.index = checked_indices(kOp, indices, input, "input", call.problem, &pool);
  return run_reading_indices(call, input, indices);
}

Tensor avg_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                  int64_t pad_h, int64_t pad_w, bool ceil_mode, bool count_include_pad,
                  int64_t divisor_override) {
  constexpr const char* kOp = "avg_pool2d";
  const Sliding pool{{kernel_h, stride_h, pad_h, 1}, {kernel_w, stride_w, pad_w, 1}, ceil_mode};
  Pool2dCall call;
  call.op = Pool2dOp::kAverageFprop;
  call.dtype = checked_dtype(input, kOp, "input");
  call.problem = sliding_problem(kOp, input.size(0), input.size(1), input.size(2), input.size(3), pool);
  call.problem.count_include_pad = count_include_pad;
  call.problem.divisor_override = divisor_override;
  call.channels_last = suggests_channels_last(input);
  return run_simple(call, input);
}

Tensor avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width, int64_t kernel_h,
                           int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                           bool ceil_mode, bool count_include_pad, int64_t divisor_override,
                           bool channels_last) {
  constexpr const char* kOp = "avg_pool2d_backward";
  const Sliding pool{{kernel_h, stride_h, pad_h, 1}, {kernel_w, stride_w, pad_w, 1}, ceil_mode};
  Pool2dCall call;
  call.op = Pool2dOp::kAverageBprop;
  call.dtype = checked_dtype(grad_output, kOp, "grad_output");
  call.problem = sliding_problem(kOp, grad_output.size(0), grad_output.size(1), height, width, pool);
  call.problem.count_include_pad = count_include_pad;
  call.problem.divisor_override = divisor_override;
  check_grad_output(kOp, grad_output, call.problem);
  call.channels_last = channels_last;
  return run_simple(call, grad_output);
}

Pool2dCall adaptive_fprop_call(const char* op, Pool2dOp which, const Tensor& input, int64_t p, int64_t q) {
  Pool2dCall call;
  call.op = which;
  call.dtype = checked_dtype(input, op, "input");
  call.problem = adaptive_problem(op, input.size(0), input.size(1), input.size(2), input.size(3), p, q);
  call.channels_last = suggests_channels_last(input);
  return call;
}

Pool2dCall adaptive_bprop_call(const char* op, Pool2dOp which, const Tensor& grad_output, int64_t height,
                               int64_t width, bool channels_last) {
  Pool2dCall call;
  call.op = which;
  call.dtype = checked_dtype(grad_output, op, "grad_output");
  if (height < 1 || width < 1) {
    fail(title(op), ": height and width must be positive, but are ", pair_text(height, width));
  }
  call.problem = adaptive_problem(op, grad_output.size(0), grad_output.size(1), height, width,
                                  grad_output.size(2), grad_output.size(3));
  call.channels_last = channels_last;
  return call;
}

Tensor adaptive_avg_pool2d(const Tensor& input, int64_t output_h, int64_t output_w) {
  Pool2dCall call =
      adaptive_fprop_call("adaptive_avg_pool2d", Pool2dOp::kAverageFprop, input, output_h, output_w);
  return run_simple(call, input);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width,
                                    bool channels_last) {
  Pool2dCall call = adaptive_bprop_call("adaptive_avg_pool2d_backward", Pool2dOp::kAverageBprop, grad_output,
                                        height, width, channels_last);
  return run_simple(call, grad_output);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d(const Tensor& input, int64_t output_h, int64_t output_w) {
  Pool2dCall call =
      adaptive_fprop_call("adaptive_max_pool2d", Pool2dOp::kMaxFprop, input, output_h, output_w);
  call.index = Pool2dIndex::kInt64Flat;
  return run_writing_indices(call, input);
}

Tensor adaptive_max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, int64_t height,
                                    int64_t width, bool channels_last) {
  constexpr const char* kOp = "adaptive_max_pool2d_backward";
  Pool2dCall call = adaptive_bprop_call(kOp, Pool2dOp::kMaxBprop, grad_output, height, width, channels_last);
  call.index = checked_indices(kOp, indices, grad_output, "grad_output", call.problem, nullptr);
  return run_reading_indices(call, grad_output, indices);
}

Tensor adaptive_max_pool2d_gather(const Tensor& input, const Tensor& indices) {
  constexpr const char* kOp = "adaptive_max_pool2d_gather";
  check_4d(indices, title(kOp).c_str(), "indices", "N, C, P, Q");
  Pool2dCall call = adaptive_fprop_call(kOp, Pool2dOp::kMaxGather, input, indices.size(2), indices.size(3));
  call.index = checked_indices(kOp, indices, input, "input", call.problem, nullptr);
  return run_reading_indices(call, input, indices);
}

}  // namespace
}  // namespace fastcnn

FASTCNN_REGISTER(FASTCNN_DISPATCH_KEY, library) {
  library.impl("max_pool2d", TORCH_BOX(&fastcnn::max_pool2d));
  library.impl("max_pool2d_with_offsets", TORCH_BOX(&fastcnn::max_pool2d_with_offsets));
  library.impl("max_pool2d_with_indices", TORCH_BOX(&fastcnn::max_pool2d_with_indices));
  library.impl("max_pool2d_backward", TORCH_BOX(&fastcnn::max_pool2d_backward));
  library.impl("max_pool2d_gather", TORCH_BOX(&fastcnn::max_pool2d_gather));
  library.impl("avg_pool2d", TORCH_BOX(&fastcnn::avg_pool2d));
  library.impl("avg_pool2d_backward", TORCH_BOX(&fastcnn::avg_pool2d_backward));
  library.impl("adaptive_avg_pool2d", TORCH_BOX(&fastcnn::adaptive_avg_pool2d));
  library.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&fastcnn::adaptive_avg_pool2d_backward));
  library.impl("adaptive_max_pool2d", TORCH_BOX(&fastcnn::adaptive_max_pool2d));
  library.impl("adaptive_max_pool2d_backward", TORCH_BOX(&fastcnn::adaptive_max_pool2d_backward));
  library.impl("adaptive_max_pool2d_gather", TORCH_BOX(&fastcnn::adaptive_max_pool2d_gather));
}
