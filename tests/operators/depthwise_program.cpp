// Checks of the depthwise and bias gradient kernels below the operators: launches of parts of a batch, the
// order of threads, tensors that reach past 2^31 elements, bytes moved, and plans. Run by
// test_depthwise_kernels.py, one check per argument; a failed check ends with its text and status 1.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "conv2d/bias_grad.h"
#include "conv2d/depthwise.h"
#include "emulator/device.h"
#include "emulator/global_memory.h"

using namespace fastcnn;

namespace {

const Chip kChip{90, 132, 227 * 1024};
// A small chip has few splits, a large one as many as the pixels are worth.
const Chip kLargeChip{90, 4096, 227 * 1024};

void expect(bool held, const std::string& what) {
  if (!held) throw std::runtime_error(what);
}

template <class A, class B>
void expect_equal(A got, B wanted, const std::string& what) {
  if (got != static_cast<A>(wanted)) {
    throw std::runtime_error(what + ": " + std::to_string(got) + " instead of " + std::to_string(wanted));
  }
}

Conv2dProblem depthwise(int n, int c, int h, int w, int multiplier, int kernel, int stride, int pad,
                        int dilation) {
  Conv2dProblem problem;
  problem.n = n;
  problem.c = problem.groups = c;
  problem.h = h;
  problem.w = w;
  problem.k = c * multiplier;
  problem.r = problem.s = kernel;
  problem.stride_h = problem.stride_w = stride;
  problem.pad_top = problem.pad_left = pad;
  problem.dilation_h = problem.dilation_w = dilation;
  problem.p = (h + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  problem.q = (w + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  return problem;
}

// Images of [n][c][h][w] elements, dense but for the distance between images.
template <class T>
class Images {
 public:
  Images(int n, int c, int h, int w, bool channels_last, int64_t stride_n = 0)
      : n_(n), image_(static_cast<int64_t>(c) * h * w), stride_n_(stride_n == 0 ? image_ : stride_n) {
    bytes_ = static_cast<size_t>((n - 1) * stride_n_ + image_) * sizeof(T);
    // Address space only: pages that nothing touches cost no memory.
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    expect(data_ != MAP_FAILED, "no address space for a test tensor");
    view_ = {data_, stride_n_, channels_last ? 1 : static_cast<int64_t>(h) * w,
             channels_last ? static_cast<int64_t>(w) * c : w, channels_last ? c : 1};
  }
  ~Images() { munmap(data_, bytes_); }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;

  T* image(int n) const { return static_cast<T*>(data_) + n * stride_n_; }
  size_t image_bytes() const { return static_cast<size_t>(image_) * sizeof(T); }
  const TensorView& view() const { return view_; }

  void fill(const std::function<float()>& next) {
    for (int n = 0; n < n_; ++n) {
      for (int64_t i = 0; i < image_; ++i) image(n)[i] = from_accumulator<T>(next());
    }
  }
  void may_read(emulator::BufferScope& scope) const {
    for (int n = 0; n < n_; ++n) scope.may_read(image(n), image_bytes());
  }
  void may_write(emulator::BufferScope& scope) const {
    for (int n = 0; n < n_; ++n) scope.may_write(image(n), image_bytes());
  }
  std::vector<T> values() const {
    std::vector<T> result;
    for (int n = 0; n < n_; ++n) result.insert(result.end(), image(n), image(n) + image_);
    return result;
  }

 private:
  int n_;
  int64_t image_, stride_n_;
  size_t bytes_ = 0;
  void* data_ = nullptr;
  TensorView view_;
};

enum class Values { kWhole, kRandom };

struct Setting {
  bool channels_last = true;
  Values values = Values::kWhole;
  int64_t stride_n = 0;  // between images; 0 for dense
  int64_t launch_pixels = kLaunchPixels;
  Chip chip = kChip;
  uint64_t seed = 0;
  bool fast = false;  // the fast kernels, where they take the problem
};

// The results of the three passes and of the bias gradient, and how often each was launched.
template <class T>
struct Results {
  std::vector<T> y, dx, dw, db;
  int launches[4] = {};
  std::vector<emulator::LaunchRecord> records;
};

template <class T>
Results<T> run(const Conv2dProblem& problem, DType dtype, const Setting& setting) {
  std::mt19937 random(7);
  const auto next = [&] {
    const int whole = static_cast<int>(random() % 7) - 3;
    return setting.values == Values::kWhole ? whole : whole + static_cast<float>(random() % 1000) / 997;
  };
  const bool last = setting.channels_last;
  Images<T> x(problem.n, problem.c, problem.h, problem.w, last, setting.stride_n);
  Images<T> dx(problem.n, problem.c, problem.h, problem.w, last, setting.stride_n);
  Images<T> y(problem.n, problem.k, problem.p, problem.q, last, setting.stride_n);
  Images<T> dy(problem.n, problem.k, problem.p, problem.q, last, setting.stride_n);
  Images<T> w(problem.k, 1, problem.r, problem.s, false);
  Images<T> dw(problem.k, 1, problem.r, problem.s, false);
  Images<T> db(1, problem.k, 1, 1, false);
  x.fill(next);
  dy.fill(next);
  w.fill(next);

  emulator::set_seed(setting.seed);
  emulator::forget_launch_records();
  Results<T> results;
  Conv2dParams params;
  params.problem = problem;
  params.dtype = dtype;
  const auto pass = [&](Conv2dPass which, const auto& input, const auto& weight_or_grad, const auto& output) {
    emulator::BufferScope scope;
    input.may_read(scope);
    weight_or_grad.may_read(scope);
    output.may_write(scope);
    const auto choose = setting.fast ? plan_depthwise : plan_any_depthwise;
    const DepthwisePlan plan = choose(which, params, setting.chip, setting.launch_pixels);
    std::vector<char> workspace(plan.workspace_bytes);
    if (!workspace.empty()) scope.may_write(workspace.data(), workspace.size());
    params.workspace = workspace.data();
    results.launches[static_cast<int>(which)] = plan.launches;
    if (which == Conv2dPass::kFprop) launch_depthwise_fprop(params, plan, nullptr);
    if (which == Conv2dPass::kDgrad) launch_depthwise_dgrad(params, plan, nullptr);
    if (which == Conv2dPass::kWgrad) launch_depthwise_wgrad(params, plan, nullptr);
  };
  params.input = x.view();
  params.weight = w.view();
  params.output = y.view();
  pass(Conv2dPass::kFprop, x, w, y);
  params.grad = dy.view();
  params.output = dx.view();
  pass(Conv2dPass::kDgrad, w, dy, dx);
  params.output = dw.view();
  pass(Conv2dPass::kWgrad, x, dy, dw);

  BiasGradParams bias;
  bias.grad = dy.view();
  bias.n = problem.n;
  bias.k = problem.k;
  bias.p = problem.p;
  bias.q = problem.q;
  bias.dtype = dtype;
  bias.output = db.image(0);
  const BiasGradPlan plan = plan_bias_grad(bias, setting.chip, setting.launch_pixels);
  results.launches[3] = plan.launches;
  {
    emulator::BufferScope scope;
    dy.may_read(scope);
    db.may_write(scope);
    std::vector<char> workspace(plan.workspace_bytes);
    scope.may_write(workspace.data(), workspace.size());
    bias.workspace = workspace.data();
    launch_bias_grad(bias, plan, nullptr);
  }
  results.y = y.values();
  results.dx = dx.values();
  results.dw = dw.values();
  results.db = db.values();
  results.records = emulator::launch_records();
  return results;
}

template <class T>
void expect_same_bits(const Results<T>& got, const Results<T>& wanted, const std::string& when) {
  const auto same = [&](const std::vector<T>& a, const std::vector<T>& b, const char* what) {
    expect(a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0,
           std::string(what) + " differs " + when);
  };
  same(got.y, wanted.y, "y");
  same(got.dx, wanted.dx, "dx");
  same(got.dw, wanted.dw, "dw");
  same(got.db, wanted.db, "db");
}

// A batch cut into launches gives what one launch gives; on whole numbers every order of addition is exact.
void launches() {
  const auto check = [](const Conv2dProblem& problem, int64_t launch_pixels) {
    for (const bool channels_last : {true, false}) {
      Setting setting;
      setting.channels_last = channels_last;
      const auto whole = run<float>(problem, DType::kFloat32, setting);
      setting.launch_pixels = launch_pixels;
      const auto parts = run<float>(problem, DType::kFloat32, setting);
      for (int i = 0; i < 4; ++i) {
        expect_equal(whole.launches[i], 1, "launches of the whole batch");
        expect(parts.launches[i] > 1, "the batch was not cut into launches");
      }
      expect_same_bits(parts, whole, "between one launch and several");
    }
  };
  check(depthwise(5, 8, 9, 10, 1, 3, 1, 1, 1), 95);
  check(depthwise(5, 3, 8, 8, 2, 3, 1, 1, 1), 70);
}

// The order in which threads run decides nothing, not even a rounding.
void seeds() {
  const std::vector<Conv2dProblem> problems = {depthwise(2, 16, 9, 11, 1, 3, 1, 1, 1),
                                               depthwise(2, 5, 9, 11, 1, 3, 2, 1, 1),
                                               depthwise(1, 3, 12, 9, 3, 4, 1, 3, 2),
                                               // More taps than fit the weights' shared memory at once.
                                               depthwise(1, 32, 13, 12, 1, 9, 1, 4, 1)};
  for (const Conv2dProblem& problem : problems) {
    for (const bool channels_last : {true, false}) {
      Setting setting;
      setting.channels_last = channels_last;
      setting.values = Values::kRandom;
      setting.chip = kLargeChip;
      const auto first = run<float>(problem, DType::kFloat32, setting);
      for (setting.seed = 1; setting.seed < 10; ++setting.seed) {
        expect_same_bits(run<float>(problem, DType::kFloat32, setting), first,
                         "under seed " + std::to_string(setting.seed));
      }
    }
  }
}

// Images that lie more than 2^31 elements apart.
void far() {
  const Conv2dProblem problem = depthwise(3, 8, 6, 5, 1, 3, 1, 1, 1);
  for (const bool channels_last : {true, false}) {
    for (const bool fast : {true, false}) {
      Setting setting;
      setting.channels_last = channels_last;
      setting.fast = fast;
      const auto near = run<__half>(problem, DType::kFloat16, setting);
      setting.stride_n = (int64_t{1} << 31) + 64;
      expect_same_bits(run<__half>(problem, DType::kFloat16, setting), near, "when images lie far apart");
    }
  }
}

uint64_t bytes_of(const uint64_t (&accesses)[emulator::kWidths]) {
  uint64_t bytes = 0;
  for (int i = 0; i < emulator::kWidths; ++i) bytes += accesses[i] << i;
  return bytes;
}

const emulator::LaunchRecord& record_of(const std::vector<emulator::LaunchRecord>& records,
                                        const char* name) {
  for (const auto& record : records) {
    if (record.name == name) return record;
  }
  throw std::runtime_error(std::string("no launch of ") + name);
}

// Every byte of a result is written once, in 16-byte accesses where channels lie side by side; wgrad and the
// bias gradient read dy once.
void bytes() {
  const Conv2dProblem problem = depthwise(2, 64, 8, 8, 1, 3, 1, 1, 1);
  const uint64_t tensor = uint64_t{2} * 64 * 8 * 8 * sizeof(__half);
  // Taps of a 3x3 window that fall inside an 8x8 image, over all its pixels.
  const uint64_t taps = (3 * 8 - 2) * (3 * 8 - 2);
  const uint64_t weights_at_most = 4096;
  for (const bool channels_last : {true, false}) {
    Setting setting;
    setting.channels_last = channels_last;
    const auto records = run<__half>(problem, DType::kFloat16, setting).records;
    for (const char* name : {"conv2d::depthwise_fprop", "conv2d::depthwise_dgrad"}) {
      const auto& record = record_of(records, name);
      expect_equal(bytes_of(record.counters.global_stores), tensor, std::string(name) + " writes");
      const uint64_t read = bytes_of(record.counters.global_loads);
      const uint64_t image_reads = tensor / 64 * taps;
      expect(read > image_reads, std::string(name) + " reads too little to have seen the weights");
      expect(read <= image_reads + record.grid.x * weights_at_most, std::string(name) + " reads too much");
      const int width = emulator::width_index(channels_last ? 16 : 2);
      expect_equal(record.counters.global_stores[width] << width, tensor, std::string(name) + " store width");
      expect(record.counters.global_loads[width] << width >= image_reads, std::string(name) + " load width");
    }
    const auto& wgrad = record_of(records, "conv2d::depthwise_wgrad");
    expect_equal(bytes_of(wgrad.counters.global_loads), tensor + tensor / 64 * taps, "wgrad reads");
    const auto& bias = record_of(records, "conv2d::bias_grad");
    expect_equal(bias.counters.global_loads[emulator::width_index(16)] * 16, tensor, "bias_grad reads");
    expect_equal(bytes_of(bias.counters.global_loads), tensor, "bias_grad reads in narrow accesses");
  }
}

Conv2dParams planned(const Conv2dProblem& problem, DType dtype, bool channels_last) {
  const auto dense = [&](int c, int h, int w) {
    const int64_t image = static_cast<int64_t>(c) * h * w;
    return channels_last ? TensorView{nullptr, image, 1, static_cast<int64_t>(w) * c, c}
                         : TensorView{nullptr, image, static_cast<int64_t>(h) * w, w, 1};
  };
  Conv2dParams params;
  params.problem = problem;
  params.dtype = dtype;
  params.input = dense(problem.c, problem.h, problem.w);
  params.grad = params.output = dense(problem.k, problem.p, problem.q);
  return params;
}

void plans() {
  // A layer of MobileNetV2 fills the chip in every pass and layout, on a workspace far below its tensors.
  for (const bool channels_last : {true, false}) {
    Conv2dParams params = planned(depthwise(32, 144, 56, 56, 1, 3, 1, 1, 1), DType::kFloat16, channels_last);
    for (const Conv2dPass pass : {Conv2dPass::kFprop, Conv2dPass::kDgrad, Conv2dPass::kWgrad}) {
      const DepthwisePlan plan = plan_any_depthwise(pass, params, kChip);
      expect_equal(plan.tile.channels_fast, channels_last, "lanes along channels");
      expect_equal(plan.vector, !channels_last ? 1 : (pass == Conv2dPass::kWgrad ? 4 : 8),
                   "channels per thread");
      expect_equal(plan.launches, 1, "launches");
      expect(plan.grid >= 2 * kChip.sm_count, "the grid does not fill the chip");
      expect(plan.workspace_bytes < size_t{8} << 20, "the workspace is excessive");
      expect_equal(plan.workspace_bytes > 0, pass == Conv2dPass::kWgrad, "whether there is a workspace");
    }
  }
  // What vectors need: a multiple of their width, one filter per channel, alignment of address and strides.
  const auto vector = [](const Conv2dProblem& problem, const std::function<void(Conv2dParams&)>& change) {
    Conv2dParams params = planned(problem, DType::kFloat32, true);
    change(params);
    return plan_any_depthwise(Conv2dPass::kFprop, params, kChip).vector;
  };
  const Conv2dProblem problem = depthwise(2, 8, 7, 7, 1, 3, 1, 1, 1);
  const auto unchanged = [](Conv2dParams&) {};
  expect_equal(vector(problem, unchanged), 4, "vector of aligned channels");
  expect_equal(vector(depthwise(2, 6, 7, 7, 1, 3, 1, 1, 1), unchanged), 1, "vector of 6 channels");
  expect_equal(vector(depthwise(2, 8, 7, 7, 2, 3, 1, 1, 1), unchanged), 1, "vector with two filters");
  expect_equal(vector(problem, [](Conv2dParams& p) { p.input.data = reinterpret_cast<void*>(8); }), 1,
               "vector of a misaligned address");
  expect_equal(vector(problem, [](Conv2dParams& p) { p.output.stride_w = 9; }), 1, "vector of an odd stride");
  expect_equal(vector(problem, [](Conv2dParams& p) { p.input.stride_c = 2; }), 1,
               "vector of spaced channels");
  // More pixels than 32-bit indices hold take several launches, each within the grid's limit.
  for (const Conv2dPass pass : {Conv2dPass::kFprop, Conv2dPass::kDgrad, Conv2dPass::kWgrad}) {
    const Conv2dProblem many = depthwise(1 << 22, 2, 64, 64, 1, 3, 1, 1, 1);
    const DepthwisePlan plan = plan_any_depthwise(pass, planned(many, DType::kFloat16, false), kChip);
    expect(plan.launches > 1, "2^34 pixels in one launch");
    expect(int64_t{plan.launches} * plan.images_per_launch >= many.n, "images are left out");
    expect(plan.grid < int64_t{1} << 31, "the grid passes its limit");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::map<std::string, void (*)()> checks = {
      {"launches", launches}, {"seeds", seeds}, {"far", far}, {"bytes", bytes}, {"plans", plans}};
  try {
    expect(count == 2, "usage: depthwise_program CHECK");
    checks.at(arguments[1])();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
