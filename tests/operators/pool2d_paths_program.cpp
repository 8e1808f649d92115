// The fast paths of pooling against the general kernels, bit for bit, and against their floor of bytes. Run
// by test_pool_paths.py; a failed check ends with its text and status 1.
//   pool2d_paths_program values      edge shapes of every path, every pass, dtype and layout
//   pool2d_paths_program bytes       the shapes of a benchmark, from stdin: name, max or avg or adaptive, H,
//   W,
//                                    kernel, stride, pad, dilation, P, Q; with few images and channels
//   pool2d_paths_program seeds       the same bits in any order of blocks and threads
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "emulator/device.h"
#include "emulator/global_memory.h"
#include "pool2d/kernels.h"
#include "pool2d/plan.h"

using namespace fastcnn;

namespace {

// One SM: plans are those of problems that fill a chip.
const Chip kSmallChip{90, 1, 227 * 1024};
const Chip kChip{90, 132, 227 * 1024};

constexpr Pool2dOp kOps[] = {Pool2dOp::kMaxFprop, Pool2dOp::kMaxBprop, Pool2dOp::kAverageFprop,
                             Pool2dOp::kAverageBprop};

void expect(bool held, const std::string& what) {
  if (!held) throw std::runtime_error(what);
}

bool is_max(Pool2dOp op) {
  return op == Pool2dOp::kMaxFprop || op == Pool2dOp::kMaxBprop;
}

int index_size(Pool2dIndex index) {
  switch (index) {
    case Pool2dIndex::kNone:
      return 0;
    case Pool2dIndex::kUint8Offset:
      return 1;
    case Pool2dIndex::kInt32Offset:
      return 4;
    case Pool2dIndex::kInt64Flat:
      return 8;
  }
  return 0;
}

// A tensor of the call: dense in its layout, or a slice of channels of a larger one.
struct Image {
  std::vector<uint64_t> memory;
  TensorView view;
  int64_t elements;

  void make(int n, int c, int h, int w, bool channels_last, int element_bytes, int more_channels = 0,
            int offset = 0) {
    const int64_t all = c + more_channels;
    elements = n * all * h * w + offset;
    memory.assign((elements * element_bytes + 7) / 8, 0);
    view.data = bytes() + offset * element_bytes;
    view.stride_n = all * h * w;
    view.stride_c = channels_last ? 1 : h * w;
    view.stride_h = channels_last ? w * all : w;
    view.stride_w = channels_last ? all : 1;
  }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(memory.data()); }
};

struct Shape {
  std::string name;
  int c;
  Pool2dProblem problem;
  int more_channels = 0;  // of the tensor that the input is a slice of
};

Pool2dProblem sliding(int n, int c, int h, int w, int kernel, int stride, int pad, bool ceil_mode = false,
                      int dilation = 1) {
  Pool2dProblem problem;
  problem.n = n;
  problem.c = c;
  problem.h = h;
  problem.w = w;
  const auto outputs = [&](int size) {
    const int room = size + 2 * pad - dilation * (kernel - 1) - 1;
    int count = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
    if (ceil_mode && (count - 1) * stride >= size + pad) --count;
    return count;
  };
  problem.p = outputs(h);
  problem.q = outputs(w);
  problem.kernel_h = problem.kernel_w = kernel;
  problem.stride_h = problem.stride_w = stride;
  problem.pad_h = problem.pad_w = pad;
  problem.dilation_h = problem.dilation_w = dilation;
  return problem;
}

Pool2dProblem adaptive(int n, int c, int h, int w, int p, int q) {
  Pool2dProblem problem;
  problem.n = n;
  problem.c = c;
  problem.h = h;
  problem.w = w;
  problem.p = p;
  problem.q = q;
  problem.adaptive = true;
  return problem;
}

// Where gradients are multiples of every divisor up to 9, all paths are exact; maxima meet ties, NaN and
// infinities.
template <class T>
void fill(Image& image, bool maximum, bool gradient, int seed) {
  std::mt19937 random(seed);
  T* data = reinterpret_cast<T*>(image.bytes());
  for (int64_t i = 0; i < image.elements; ++i) {
    const int draw = static_cast<int>(random() % 64);
    float x = static_cast<float>(draw % 7 - 3);
    if (gradient) x *= 36;
    if (maximum && !gradient && draw < 24) x = -std::numeric_limits<float>::infinity();
    if (maximum && !gradient && draw == 63) x = std::numeric_limits<float>::quiet_NaN();
    data[i] = from_accumulator<T>(x);
  }
}

// A call with its buffers.
struct Trial {
  Pool2dCall call;
  Image input, output, indices;

  Trial(Pool2dOp op, const Pool2dProblem& problem, DType dtype, bool channels_last, Pool2dIndex index,
        int more_channels = 0, int offset = 0) {
    const bool back = pool2d_walks_input(op);
    const int bytes = dtype_size(dtype);
    call.problem = problem;
    call.op = op;
    call.dtype = dtype;
    call.index = index;
    call.channels_last = channels_last;
    const auto& [n, c, h, w, p, q] =
        std::tie(problem.n, problem.c, problem.h, problem.w, problem.p, problem.q);
    input.make(n, c, back ? p : h, back ? q : w, channels_last, bytes, more_channels, offset);
    output.make(n, c, back ? h : p, back ? w : q, channels_last, bytes);
    if (dtype == DType::kFloat32) fill<float>(input, is_max(op), back, 5);
    if (dtype == DType::kFloat16) fill<__half>(input, is_max(op), back, 5);
    if (dtype == DType::kBFloat16) fill<__nv_bfloat16>(input, is_max(op), back, 5);
    call.input = input.view;
    call.output = output.view;
    if (index != Pool2dIndex::kNone) {
      indices.make(n, c, p, q, channels_last, index_size(index));
      call.indices = indices.view;
      if (back) {
        // What a fprop of other numbers chose: valid taps, clipped windows included.
        Trial chosen(Pool2dOp::kMaxFprop, problem, dtype, channels_last, index);
        chosen.run(plan_general_pool2d(chosen.call, kChip));
        indices.memory = chosen.indices.memory;
      }
    }
  }

  void run(const Pool2dPlan& plan) {
    const bool writes_indices = call.op == Pool2dOp::kMaxFprop;
    emulator::BufferScope scope;
    scope.may_read(input.bytes(), input.elements * dtype_size(call.dtype));
    scope.may_write(output.bytes(), output.elements * dtype_size(call.dtype));
    if (call.index != Pool2dIndex::kNone) {
      const size_t bytes = indices.elements * index_size(call.index);
      writes_indices ? scope.may_write(indices.bytes(), bytes) : scope.may_read(indices.bytes(), bytes);
    }
    launch_pool2d(call, plan, nullptr);
  }
};

std::string describe(const Pool2dCall& call, const Pool2dPlan& plan) {
  const Pool2dProblem& p = call.problem;
  std::string text = plan.kernel;
  for (const int number :
       {p.n, p.c, p.h, p.w, p.p, p.q, int{p.adaptive}, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h,
        plan.block_rows, plan.block_columns, plan.lanes, plan.block_planes}) {
    text += " " + std::to_string(number);
  }
  return text + " " + dtype_name(call.dtype) + (call.channels_last ? " NHWC" : " NCHW");
}

std::map<std::string, int> paths_taken;

bool near(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  std::vector<float> x(2 * a.size()), y(2 * b.size());
  std::memcpy(x.data(), a.data(), 8 * a.size());
  std::memcpy(y.data(), b.data(), 8 * b.size());
  return std::equal(x.begin(), x.end(), y.begin(),
                    [](float s, float t) { return std::abs(s - t) <= 1e-5f * std::max(1.0f, std::abs(t)); });
}

// The planned path gives the bits of the general kernel.
void compare(Trial& trial, const Chip& chip) {
  const Pool2dPlan plan = plan_pool2d(trial.call, chip);
  ++paths_taken[plan.kernel];
  if (plan.path == Pool2dPath::kGeneral) return;
  emulator::forget_launch_records();
  trial.run(plan);
  const emulator::LaunchRecord record = emulator::launch_records().back();
  const std::string what = describe(trial.call, plan);
  expect(record.name == plan.kernel && record.grid.x == plan.grid && record.threads == plan.threads &&
             record.shared_bytes == plan.shared_bytes,
         what + ": the launch is not what the plan says");
  const std::vector<uint64_t> output = trial.output.memory, indices = trial.indices.memory;
  const Pool2dPlan general = plan_general_pool2d(trial.call, chip);
  trial.run(general);
  const size_t bytes = trial.output.elements * dtype_size(trial.call.dtype);
  if (general.splits > 1 && trial.call.op == Pool2dOp::kAverageBprop) {  // adds quotients in another order
    expect(trial.call.dtype != DType::kFloat32 || near(output, trial.output.memory), what + ": not near");
    return;
  }
  const auto* got = reinterpret_cast<const uint8_t*>(output.data());
  for (size_t i = 0; i < bytes; ++i) {
    expect(got[i] == trial.output.bytes()[i], what + ": differs from the general kernel at element " +
                                                  std::to_string(i / dtype_size(trial.call.dtype)));
  }
  expect(indices == trial.indices.memory, what + ": other indices than the general kernel");
}

void compare_passes(const Pool2dProblem& problem, DType dtype, bool channels_last, const Chip& chip) {
  for (const Pool2dOp op : kOps) {
    if (!is_max(op) && problem.dilation_h > 1) continue;  // no such pool
    std::vector<Pool2dIndex> kinds{Pool2dIndex::kNone};
    if (is_max(op)) {
      const bool bytes = problem.kernel_h * problem.kernel_w <= 256;
      kinds = {problem.adaptive ? Pool2dIndex::kInt64Flat
               : bytes          ? Pool2dIndex::kUint8Offset
                                : Pool2dIndex::kInt32Offset};
      if (op == Pool2dOp::kMaxFprop) kinds.push_back(Pool2dIndex::kNone);
    }
    for (const Pool2dIndex index : kinds) {
      Trial trial(op, problem, dtype, channels_last, index);
      compare(trial, chip);
    }
  }
}

std::vector<Pool2dProblem> edge_shapes() {
  std::vector<Pool2dProblem> shapes;
  const auto add = [&](const Pool2dProblem& problem) { shapes.push_back(problem); };
  for (const int c : {1, 7, 8, 9, 24}) {
    add(sliding(2, c, 9, 11, 3, 2, 1));
    add(sliding(1, c, 7, 6, 3, 1, 1));
    add(sliding(2, c, 8, 16, 2, 2, 0));
    add(sliding(1, c, 9, 13, 2, 2, 0, true));
    add(adaptive(2, c, 7, 9, 1, 1));
  }
  for (const auto& [kernel, stride] : std::vector<std::pair<int, int>>{{3, 2}, {3, 1}, {2, 2}}) {
    for (const bool ceil_mode : {false, true}) {
      for (int pad = 0; pad <= 1; ++pad) {
        for (const auto& [h, w] :
             std::vector<std::pair<int, int>>{{1, 1}, {1, 5}, {2, 2}, {3, 17}, {14, 4}, {6, 33}}) {
          if (h + 2 * pad < kernel || w + 2 * pad < kernel) continue;
          add(sliding(1, 16, h, w, kernel, stride, pad, ceil_mode));
        }
      }
    }
  }
  // Wider than a block, taller than a tile: strips, column tiles.
  add(sliding(1, 8, 5, 300, 3, 1, 1));
  add(sliding(1, 8, 6, 531, 3, 2, 0, true));
  add(sliding(1, 8, 150, 65, 3, 2, 1));
  add(sliding(1, 8, 140, 60, 3, 1, 1));
  add(sliding(1, 8, 131, 70, 2, 2, 0, true));
  // Channels in several chunks, the last one short.
  add(sliding(1, 264, 3, 7, 3, 1, 1));
  // Planes just below, at and above a tile: 64 x 64 floats, 128 x 64 halves.
  add(sliding(1, 8, 63, 65, 3, 2, 1));
  add(sliding(1, 8, 64, 64, 3, 2, 1));
  add(sliding(1, 8, 65, 63, 3, 2, 1, true));
  // Windows of other kinds.
  add(sliding(1, 8, 20, 20, 13, 1, 6));
  add(sliding(2, 8, 9, 10, 3, 1, 1, false, 2));
  add(sliding(2, 8, 12, 11, 2, 3, 1));
  add(sliding(2, 8, 11, 10, 5, 3, 2, true));
  add(adaptive(2, 8, 10, 7, 3, 5));
  add(adaptive(2, 8, 4, 3, 7, 9));
  // Dilated: in phases, and where image, outputs or padding are no multiple of the dilation.
  for (const int pad : {0, 2}) {
    add(sliding(2, 16, 10, 12, 3, 1, pad, false, 2));
    add(sliding(1, 16, 9, 12, 3, 1, pad, false, 2));
  }
  add(sliding(2, 16, 10, 8, 3, 1, 1, false, 2));
  add(sliding(2, 8, 9, 15, 3, 1, 0, false, 3));
  add(sliding(1, 8, 12, 9, 3, 2, 3, false, 3));
  // A window of the image's size that its dilation carries beyond it is not global.
  add(sliding(2, 16, 4, 4, 4, 4, 0, true, 2));
  // Large windows on small planes.
  for (const int c : {1, 8, 12, 40}) add(sliding(2, c, 7, 9, 5, 1, 2));
  add(sliding(1, 16, 3, 5, 4, 3, 2));
  add(sliding(1, 16, 17, 8, 8, 2, 4, true));
  add(sliding(1, 16, 12, 11, 4, 1, 2, false, 3));
  add(sliding(1, 32, 40, 40, 5, 1, 2));
  add(sliding(1, 32, 13, 13, 16, 1, 8));
  // Adaptive windows side by side, and next to that.
  add(adaptive(2, 16, 8, 14, 4, 7));
  add(adaptive(2, 16, 9, 14, 4, 7));
  // Global, planes and vectors of every size and address: staged and not, in several slices, with crossings.
  for (const auto& [h, w] : std::vector<std::pair<int, int>>{
           {1, 1}, {1, 2}, {2, 1}, {1, 7}, {2, 2}, {7, 7}, {8, 8}, {9, 7}, {13, 11}, {14, 14}, {23, 29}}) {
    for (const int c : {1, 8, 40}) add(adaptive(3, c, h, w, 1, 1));
  }
  add(adaptive(1, 8, 61, 47, 1, 1));
  add(adaptive(70, 264, 3, 2, 1, 1));
  add(adaptive(1, 520, 4, 5, 1, 1));
  for (const int size : {5, 16})
    add(sliding(2, 16, size, size, size, 1, 0));  // one window of the image's size
  add(sliding(2, 16, 17, 17, 17, 3, 0));          // offsets beyond one byte
  return shapes;
}

void values() {
  for (const Pool2dProblem& shape : edge_shapes()) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      if (dtype == DType::kFloat16 && shape.h * shape.w > 400) continue;
      for (const bool channels_last : {false, true}) {
        compare_passes(shape, dtype, channels_last, shape.h % 2 == 0 ? kChip : kSmallChip);
      }
    }
  }
  // Divisors of clipped windows.
  for (const auto& [include, override] :
       std::vector<std::pair<bool, int>>{{false, 0}, {true, 0}, {true, 4}}) {
    for (const int stride : {1, 2}) {
      Pool2dProblem problem = sliding(2, 8, 10, 12, 3, stride, 1, true);
      problem.count_include_pad = include;
      problem.divisor_override = override;
      for (const bool channels_last : {false, true}) {
        for (const Pool2dOp op : {Pool2dOp::kAverageFprop, Pool2dOp::kAverageBprop}) {
          Trial trial(op, problem, DType::kFloat32, channels_last, Pool2dIndex::kNone);
          compare(trial, kChip);
        }
      }
    }
  }
  // Slices of channels: whole vectors of them stay on the strip, others fall back.
  for (const auto& [more, offset] : std::vector<std::pair<int, int>>{{8, 8}, {1, 0}, {8, 1}}) {
    Trial trial(Pool2dOp::kMaxFprop, sliding(2, 8, 9, 12, 3, 2, 1), DType::kFloat32, true,
                Pool2dIndex::kUint8Offset, more, offset);
    const bool strip = plan_pool2d(trial.call, kChip).path == Pool2dPath::kStrip;
    expect(strip == (more % 4 == 0 && offset % 4 == 0), "slices and the strip path");
    compare(trial, kChip);
    Trial plane(Pool2dOp::kAverageFprop, sliding(2, 8, 9, 12, 3, 2, 1), DType::kFloat32, false,
                Pool2dIndex::kNone, more, offset);
    expect(plan_pool2d(plane.call, kChip).path == Pool2dPath::kGeneral, "a slice of planes is not general");
  }
  for (const auto& [kernel, count] : paths_taken) std::printf("%s %d\n", kernel.c_str(), count);
}

void seeds() {
  for (const Pool2dProblem& problem :
       {sliding(1, 16, 19, 12, 3, 2, 1), sliding(1, 16, 12, 12, 3, 1, 1), sliding(2, 8, 12, 16, 2, 2, 0),
        sliding(1, 8, 15, 15, 7, 1, 3), adaptive(2, 8, 14, 14, 1, 1)}) {
    for (const Pool2dOp op : kOps) {
      for (const bool channels_last : {false, true}) {
        const Pool2dIndex index = !is_max(op)        ? Pool2dIndex::kNone
                                  : problem.adaptive ? Pool2dIndex::kInt64Flat
                                                     : Pool2dIndex::kUint8Offset;
        Trial trial(op, problem, DType::kFloat32, channels_last, index);
        const Pool2dPlan plan = plan_pool2d(trial.call, kChip);
        float* data = reinterpret_cast<float*>(trial.input.bytes());
        std::mt19937 random(3);
        std::uniform_real_distribution<float> uniform(-1, 1);
        for (int64_t i = 0; i < trial.input.elements; ++i) data[i] = uniform(random);
        std::vector<uint64_t> first;
        for (int seed = 0; seed < 10; ++seed) {
          emulator::set_seed(seed);
          trial.run(plan);
          if (seed == 0) first = trial.output.memory;
          expect(first == trial.output.memory,
                 plan.kernel + " gives other bits with seed " + std::to_string(seed));
        }
      }
    }
  }
}

uint64_t moved(const uint64_t (&accesses)[emulator::kWidths]) {
  uint64_t bytes = 0;
  for (int i = 0; i < emulator::kWidths; ++i) bytes += accesses[i] << i;
  return bytes;
}

// Bytes and widths of one call at a benchmark's shape.
void hold_to_floor(Trial& trial) {
  const Pool2dPlan plan = plan_pool2d(trial.call, kSmallChip);
  if (plan.path == Pool2dPath::kGeneral) return;
  emulator::forget_launch_records();
  trial.run(plan);
  const emulator::LaunchRecord record = emulator::launch_records().back();
  const emulator::Counters& counters = record.counters;
  const double element = dtype_size(trial.call.dtype);
  const double index = index_size(trial.call.index);
  const bool writes_indices = trial.call.op == Pool2dOp::kMaxFprop;
  const double floor_read =
      trial.input.elements * element + (writes_indices ? 0 : trial.indices.elements * index);
  const double floor_written =
      trial.output.elements * element + (writes_indices ? trial.indices.elements * index : 0);
  const double read = moved(counters.global_loads) / floor_read;
  const double written = moved(counters.global_stores) / floor_written;
  const double wide_loads = 16.0 * counters.global_loads[4] / moved(counters.global_loads);
  const double wide_stores = 16.0 * counters.global_stores[4] / moved(counters.global_stores);
  char text[200];
  std::snprintf(text, sizeof text, ": read %.3f, written %.3f of the floor; wide %.2f, %.2f", read, written,
                wide_loads, wide_stores);
  const std::string what = describe(trial.call, plan) + text;
  std::printf("%s\n", what.c_str());
  // A slice of a global bprop reads the little that belongs to a whole plane: held to the floor of the pass.
  const bool slices = plan.path == Pool2dPath::kGlobal && pool2d_walks_input(trial.call.op);
  const double pass = (read * floor_read + floor_written) / (floor_read + floor_written);
  // Rows and columns that the last window leaves over need not be read.
  const Pool2dProblem& problem = trial.call.problem;
  const auto covered = [](int input, int output, int kernel, int stride, int pad) {
    return std::min(input, (output - 1) * stride + kernel - pad) / static_cast<double>(input);
  };
  const bool whole = problem.adaptive || !writes_indices;
  const double least =
      whole ? 1
            : covered(problem.h, problem.p, problem.kernel_h, problem.stride_h, problem.pad_h) *
                  covered(problem.w, problem.q, problem.kernel_w, problem.stride_w, problem.pad_w);
  expect(read >= least && (slices ? pass : read) <= 1.10, what);
  expect(written == 1, what);
  // The larger tensor moves 16 bytes at a time, but for the ends of planes.
  expect((pool2d_walks_input(trial.call.op) ? wide_stores : wide_loads) >= 0.85, what);
}

void bytes() {
  std::string name, kind;
  int h, w, kernel, stride, pad, dilation, p, q;
  while (std::cin >> name >> kind >> h >> w >> kernel >> stride >> pad >> dilation >> p >> q) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const bool channels_last : {false, true}) {
        for (const Pool2dOp op : kOps) {
          if (is_max(op) != (kind == "max") && kind != "adaptive") continue;
          Pool2dProblem problem = kind == "adaptive"
                                      ? adaptive(1, 16, h, w, p, q)
                                      : sliding(1, 16, h, w, kernel, stride, pad, false, dilation);
          if (h * w < 1000) problem.n = 2;
          if (h * w < 400) problem.c = 64;
          problem.p = p;
          problem.q = q;
          const Pool2dIndex index = !is_max(op)        ? Pool2dIndex::kNone
                                    : problem.adaptive ? Pool2dIndex::kInt64Flat
                                                       : Pool2dIndex::kUint8Offset;
          Trial trial(op, problem, dtype, channels_last, index);
          hold_to_floor(trial);
        }
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::map<std::string, void (*)()> checks = {{"values", values}, {"bytes", bytes}, {"seeds", seeds}};
  try {
    expect(count == 2, "usage: pool2d_paths_program CHECK");
    checks.at(arguments[1])();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
