// Checks of the pool kernels below the operators: how work is cut into launches and blocks, what is read and
// written, and the axis arithmetic where it needs 64 bits. Run by test_pool_kernels.py, one check per
// argument; a failed check ends with its text and status 1.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/device.h"
#include "emulator/global_memory.h"
#include "pool2d/axis.cuh"
#include "pool2d/kernels.h"
#include "pool2d/plan.h"

using namespace fastcnn;

namespace {

const Chip kChip{90, 132, 227 * 1024};

void expect(bool held, const std::string& what) {
  if (!held) throw std::runtime_error(what);
}

template <class A, class B>
void expect_equal(A got, B wanted, const std::string& what) {
  if (got != static_cast<A>(wanted)) {
    throw std::runtime_error(what + ": " + std::to_string(got) + " instead of " + std::to_string(wanted));
  }
}

TensorView dense(void* data, int64_t c, int64_t h, int64_t w, bool channels_last) {
  TensorView view;
  view.data = data;
  view.stride_n = c * h * w;
  view.stride_c = channels_last ? 1 : h * w;
  view.stride_h = channels_last ? w * c : w;
  view.stride_w = channels_last ? c : 1;
  return view;
}

Pool2dProblem sliding(int n, int c, int h, int w, int kernel, int stride, int pad) {
  Pool2dProblem problem;
  problem.n = n;
  problem.c = c;
  problem.h = h;
  problem.w = w;
  problem.p = (h + 2 * pad - kernel) / stride + 1;
  problem.q = (w + 2 * pad - kernel) / stride + 1;
  problem.kernel_h = problem.kernel_w = kernel;
  problem.stride_h = problem.stride_w = stride;
  problem.pad_h = problem.pad_w = pad;
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

// A call of one op over float32 with random contents, its buffers, and what running it gave.
struct Trial {
  Pool2dCall call;
  std::vector<float> input, output;
  std::vector<uint8_t> indices;
  bool indices_written;

  Trial(Pool2dOp op, const Pool2dProblem& problem, bool channels_last) {
    const int64_t planes = int64_t{problem.n} * problem.c;
    const int64_t large = planes * problem.h * problem.w;
    const int64_t small = planes * problem.p * problem.q;
    const bool walks_input = pool2d_walks_input(op);
    call.problem = problem;
    call.op = op;
    call.channels_last = channels_last;
    input.resize(walks_input ? small : large);
    output.resize(walks_input ? large : small);
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& x : input) x = uniform(random);
    const auto view = [&](void* data, bool is_large) {
      return dense(data, problem.c, is_large ? problem.h : problem.p, is_large ? problem.w : problem.q,
                   channels_last);
    };
    call.input = view(input.data(), !walks_input);
    call.output = view(output.data(), walks_input);
    indices_written = op == Pool2dOp::kMaxFprop;
    if (op == Pool2dOp::kMaxFprop || op == Pool2dOp::kMaxBprop || op == Pool2dOp::kMaxGather) {
      call.index = Pool2dIndex::kUint8Offset;
      indices.resize(small);
      for (uint8_t& index : indices) {
        index = static_cast<uint8_t>(random() % (problem.kernel_h * problem.kernel_w));
      }
      call.indices = view(indices.data(), false);
    }
  }

  void run(const Pool2dPlan& plan) {
    emulator::BufferScope scope;
    scope.may_read(input.data(), input.size() * sizeof(float));
    scope.may_write(output.data(), output.size() * sizeof(float));
    if (indices_written) {
      scope.may_write(indices.data(), indices.size());
    } else if (!indices.empty()) {
      scope.may_read(indices.data(), indices.size());
    }
    launch_pool2d(call, plan, nullptr);
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr Pool2dOp kOps[] = {Pool2dOp::kMaxFprop, Pool2dOp::kMaxBprop, Pool2dOp::kMaxGather,
                             Pool2dOp::kAverageFprop, Pool2dOp::kAverageBprop};

// Tensors too large for one launch are cut into boxes; a small limit cuts small tensors at every axis.
void boxes() {
  for (const Pool2dOp op : kOps) {
    for (const bool channels_last : {false, true}) {
      for (const int kernel : {2, 6}) {  // 6 x 6 windows at stride 1 are shared by threads
        Trial trial(op, sliding(2, 4, 8, 9, kernel, 1, kernel / 2), channels_last);
        Pool2dPlan plan = plan_general_pool2d(trial.call, kChip);
        emulator::forget_launch_records();
        trial.run(plan);
        expect_equal(emulator::launch_records().size(), 1, "launches of an uncut call");
        const std::vector<float> whole = trial.output;
        const std::vector<uint8_t> whole_indices = trial.indices;
        for (const int64_t limit : {5, 20, 100, 250}) {
          plan.items_per_launch = limit;
          emulator::forget_launch_records();
          trial.run(plan);
          const std::string what = plan.kernel + " cut at " + std::to_string(limit);
          expect(emulator::launch_records().size() >= static_cast<size_t>(plan.items / limit),
                 what + " is not cut");
          expect(same_bits(trial.output, whole) && trial.indices == whole_indices,
                 what + " gives other values");
        }
      }
    }
  }
}

// Whatever the order of threads and blocks, the bits are the same: also where threads share a window.
void seeds() {
  for (const Pool2dOp op : kOps) {
    for (const bool channels_last : {false, true}) {
      Trial trial(op, sliding(2, 5, 12, 11, 7, 1, 3), channels_last);
      const Pool2dPlan plan = plan_general_pool2d(trial.call, kChip);
      if (op != Pool2dOp::kMaxGather) expect(plan.splits > 1, plan.kernel + " is not shared by threads");
      std::vector<float> first;
      std::vector<uint8_t> first_indices;
      for (int seed = 0; seed < 10; ++seed) {
        emulator::set_seed(seed);
        trial.run(plan);
        if (seed == 0) {
          first = trial.output;
          first_indices = trial.indices;
        }
        expect(same_bits(trial.output, first) && trial.indices == first_indices,
               plan.kernel + " gives other bits with seed " + std::to_string(seed));
      }
    }
  }
}

uint64_t total(const uint64_t (&accesses)[emulator::kWidths]) {
  uint64_t sum = 0;
  for (const uint64_t count : accesses) sum += count;
  return sum;
}

// Without overlap, fprop touches every byte once; with whole groups of channels, 16 bytes at a time.
void bytes() {
  Trial maximum(Pool2dOp::kMaxFprop, sliding(2, 16, 8, 6, 2, 2, 0), true);
  emulator::forget_launch_records();
  maximum.run(plan_general_pool2d(maximum.call, kChip));
  emulator::Counters counters = emulator::launch_records().back().counters;
  expect_equal(counters.global_loads[4], 2 * 16 * 8 * 6 / 4, "16-byte loads of a max fprop");
  expect_equal(total(counters.global_loads), counters.global_loads[4], "all loads of a max fprop");
  expect_equal(counters.global_stores[4], 2 * 16 * 4 * 3 / 4, "16-byte stores of a max fprop");
  expect_equal(counters.global_stores[2], 2 * 16 * 4 * 3 / 4, "stores of four one-byte indices");
  expect_equal(total(counters.global_stores), 2 * counters.global_stores[4], "all stores of a max fprop");

  Trial back(Pool2dOp::kMaxBprop, sliding(2, 16, 8, 6, 2, 2, 0), true);
  back.run(plan_general_pool2d(back.call, kChip));
  counters = emulator::launch_records().back().counters;
  expect_equal(counters.global_stores[4], 2 * 16 * 8 * 6 / 4, "16-byte stores of a max bprop");
  expect_equal(counters.global_loads[4], 2 * 16 * 8 * 6 / 4, "16-byte loads of a max bprop, one per input");
  expect_equal(total(counters.global_loads), 2 * counters.global_loads[4], "all loads of a max bprop");

  for (const bool channels_last : {false, true}) {
    Trial global(Pool2dOp::kAverageFprop, adaptive(2, 5, 13, 11, 1, 1), channels_last);
    const Pool2dPlan plan = plan_general_pool2d(global.call, kChip);
    expect(plan.splits > 1, "a global average is one thread's work");
    global.run(plan);
    counters = emulator::launch_records().back().counters;
    expect_equal(total(counters.global_loads), 2 * 5 * 13 * 11, "loads of a global average");
    expect_equal(total(counters.global_stores), 2 * 5, "stores of a global average");
  }
}

// The grid of a plan is the grid of its launch, and a block holds what the plan says.
void plans() {
  for (const Pool2dOp op : kOps) {
    for (const bool channels_last : {false, true}) {
      for (const int kernel : {2, 7}) {
        Trial trial(op, sliding(3, 12, 15, 9, kernel, 1, 0), channels_last);
        const Pool2dPlan plan = plan_general_pool2d(trial.call, kChip);
        emulator::forget_launch_records();
        trial.run(plan);
        const emulator::LaunchRecord record = emulator::launch_records().back();
        expect(record.name == plan.kernel,
               "the launch is named " + record.name + ", the plan " + plan.kernel);
        expect_equal(record.grid.x, plan.grid, plan.kernel + ": grid");
        expect_equal(record.threads, plan.threads, plan.kernel + ": threads");
        expect_equal(record.shared_bytes, plan.shared_bytes, plan.kernel + ": shared bytes");
        expect(!plan.tile.empty() && !plan.reason.empty(), plan.kernel + ": no tile or reason given");
        expect_equal(plan.vector, channels_last && plan.splits == 1 && op != Pool2dOp::kMaxGather ? 4 : 1,
                     plan.kernel + ": vector");
      }
    }
  }
  const Pool2dProblem giant = adaptive(1, 3, 60000, 60000, 50000, 50000);
  const Pool2dPlan plan =
      plan_general_pool2d(Pool2dOp::kAverageFprop, giant, DType::kFloat16, false, false, kChip);
  expect_equal(plan.items, int64_t{3} * 50000 * 50000, "items of a giant output");
  expect_equal(plan.grid, (plan.items + plan.outputs_per_block - 1) / plan.outputs_per_block, "its grid");
}

// 16-byte accesses only where every tensor allows them.
void alignment() {
  const auto fits = [](const std::function<void(Pool2dCall&)>& change) {
    Trial trial(Pool2dOp::kMaxBprop, sliding(2, 8, 6, 5, 3, 2, 1), true);
    change(trial.call);
    return pool2d_vectors_fit(trial.call);
  };
  expect(fits([](Pool2dCall&) {}), "dense NHWC of 8 channels does not fit");
  expect(!fits([](Pool2dCall& call) { call.problem.c = 6; }), "6 float channels fit");
  expect(!fits([](Pool2dCall& call) { call.input.stride_w = 9; }), "an odd pixel stride fits");
  expect(!fits([](Pool2dCall& call) { call.input.stride_c = 2; }), "strided channels fit");
  expect(!fits([](Pool2dCall& call) { call.input.data = static_cast<float*>(call.input.data) + 1; }),
         "a misaligned tensor fits");
  expect(!fits([](Pool2dCall& call) { call.indices.data = static_cast<uint8_t*>(call.indices.data) + 1; }),
         "misaligned indices fit");
  expect(!fits([](Pool2dCall& call) { call.indices.stride_h = 7; }), "an odd row stride of indices fits");
  expect(fits([](Pool2dCall& call) {
           call.problem.n = 1;
           call.input.stride_n = 7;
         }),
         "the stride of an axis of one element counts");
}

// Window arithmetic against its definition, in ranges where products pass 2^31.
void axes() {
  for (const auto& [input, output] : std::vector<std::pair<int, int>>{
           {7, 3}, {3, 7}, {46340, 46341}, {70001, 65003}, {65003, 70001}, {2000000000, 999999999}}) {
    const PoolAxis axis = PoolAxis::adaptive(input, output);
    for (int64_t step = 0; step <= 200; ++step) {
      const int64_t o = (output - 1) * step / 200;
      const PoolWindow window = axis.window(static_cast<int>(o));
      expect_equal(window.start, o * input / output, "start of an adaptive window");
      expect_equal(window.start + window.count, ((o + 1) * input + output - 1) / output,
                   "end of an adaptive window");
      const int64_t i = (input - 1) * step / 200;
      const PoolWindows windows = axis.covering(static_cast<int>(i));
      for (int64_t w = windows.begin - 1; w <= windows.end; ++w) {
        if (w < 0 || w >= output) continue;
        const bool covers = w * input / output <= i && i < ((w + 1) * input + output - 1) / output;
        expect_equal(w >= windows.begin && w < windows.end, covers, "whether an adaptive window covers");
      }
    }
  }
  // A window of many taps far apart, at the end of a long axis.
  const int input = 2000000000;
  const int kernel = 1 << 29;
  const int dilation = 1 << 29;
  const PoolAxis axis = PoolAxis::sliding(input, 7, kernel, 300000000, 1000, dilation);
  const PoolWindow last = axis.window(6);
  expect_equal(last.start, int64_t{6} * 300000000 - 1000, "start of a far window");
  expect_equal(last.count, 1, "taps of a far window");
  const PoolWindow early = axis.window(0);
  expect_equal(early.first, 1, "first tap inside");
  expect_equal(early.count, 3, "taps of an early window");
  expect_equal(axis.position(0, 2), int64_t{2} * dilation - 1000, "position of a tap");
  expect_equal(axis.position(0, kernel - 1), -1, "position of a tap outside");
  expect_equal(axis.tap(0, 2 * dilation - 1000), 2, "tap at a position");
  expect(!axis.holds(0, 2 * dilation - 999), "a position between taps is held");
}

}  // namespace

int main(int count, char** arguments) {
  const std::map<std::string, void (*)()> checks = {{"boxes", boxes},         {"seeds", seeds},
                                                    {"bytes", bytes},         {"plans", plans},
                                                    {"alignment", alignment}, {"axes", axes}};
  try {
    expect(count == 2, "usage: pool2d_program CHECK");
    checks.at(arguments[1])();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
