// The Python module that sets the emulated device's seed and chip, reads its counters and runs single
// instructions and self-tests on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/device.h"
#include "emulator/global_memory.h"
#include "instructions/instructions.h"
#include "self_tests/self_tests.h"

namespace py = pybind11;
using namespace py::literals;
using namespace fastcnn;
using instructions::Instruction;
using self_tests::SelfTest;
using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

namespace {

py::dict by_width(const uint64_t (&counts)[emulator::kWidths]) {
  py::dict result;
  for (int i = 0; i < emulator::kWidths; ++i) result[py::int_(1 << i)] = counts[i];
  return result;
}

uint64_t bytes_of(const uint64_t (&counts)[emulator::kWidths]) {
  uint64_t bytes = 0;
  for (int i = 0; i < emulator::kWidths; ++i) bytes += counts[i] << i;
  return bytes;
}

py::list launches() {
  py::list result;
  for (const auto& launch : emulator::launch_records()) {
    const emulator::Counters& counters = launch.counters;
    result.append(py::dict(
        "name"_a = launch.name, "grid"_a = py::make_tuple(launch.grid.x, launch.grid.y, launch.grid.z),
        "threads"_a = launch.threads, "shared_bytes"_a = launch.shared_bytes,
        "global_bytes_read"_a = bytes_of(counters.global_loads),
        "global_bytes_written"_a = bytes_of(counters.global_stores),
        "global_loads"_a = by_width(counters.global_loads),
        "global_stores"_a = by_width(counters.global_stores), "shared_loads"_a = counters.shared_loads,
        "shared_stores"_a = counters.shared_stores, "shared_bytes_loaded"_a = counters.shared_bytes_loaded,
        "shared_bytes_stored"_a = counters.shared_bytes_stored, "async_copies"_a = counters.async_copies,
        "matrix_loads"_a = counters.matrix_loads, "mmas"_a = counters.mmas, "shuffles"_a = counters.shuffles,
        "votes"_a = counters.votes, "warp_barriers"_a = counters.warp_barriers,
        "barriers"_a = counters.barriers));
  }
  return result;
}

py::dict instruction_words() {
  const instructions::InstructionList list = instructions::all_instructions();
  py::dict result;
  for (int i = 0; i < list.count; ++i) {
    result[list.first[i].name] = py::make_tuple(list.first[i].inputs, list.first[i].outputs);
  }
  return result;
}

const Instruction& instruction_named(const std::string& name) {
  const instructions::InstructionList list = instructions::all_instructions();
  for (int i = 0; i < list.count; ++i) {
    if (list.first[i].name == name) return list.first[i];
  }
  throw std::invalid_argument("no instruction is named " + name);
}

Words run_instruction(const std::string& name, const Words& in) {
  const Instruction& instruction = instruction_named(name);
  if (in.ndim() != 3 || in.shape(1) != 32 || in.shape(2) != instruction.inputs) {
    throw std::invalid_argument(name + " takes words of shape [warps, 32, " +
                                std::to_string(instruction.inputs) + "]");
  }
  Words out({in.shape(0), py::ssize_t{32}, py::ssize_t{instruction.outputs}});
  const uint32_t* source = in.data();
  uint32_t* target = out.mutable_data();
  const auto source_bytes = static_cast<size_t>(in.nbytes());
  const auto target_bytes = static_cast<size_t>(out.nbytes());
  const int warps = static_cast<int>(in.shape(0));
  const py::gil_scoped_release unlocked;
  emulator::BufferScope scope;
  scope.may_read(source, source_bytes);
  scope.may_write(target, target_bytes);
  instruction.run(instruction.name, source, target, warps, nullptr);
  return out;
}

std::vector<SelfTest> all_self_tests() {
  std::vector<SelfTest> result;
  for (const self_tests::SelfTestList& list :
       {self_tests::shared_memory_tests(), self_tests::global_memory_tests(), self_tests::barrier_tests(),
        self_tests::warp_tests(), self_tests::async_copy_tests()}) {
    result.insert(result.end(), list.first, list.first + list.count);
  }
  return result;
}

void run_self_test(const std::string& name, bool faulty) {
  for (const SelfTest& test : all_self_tests()) {
    if (test.name == name) return test.run(faulty);
  }
  throw std::invalid_argument("no self-test is named " + name);
}

std::vector<std::string> self_test_names() {
  std::vector<std::string> names;
  for (const SelfTest& test : all_self_tests()) names.emplace_back(test.name);
  return names;
}

void set_chip(int compute_capability, int sm_count, int shared_bytes_per_block) {
  Chip chip;
  chip.compute_capability = compute_capability;
  chip.sm_count = sm_count;
  chip.shared_bytes_per_block = shared_bytes_per_block;
  emulator::set_emulated_chip(chip);
}

}  // namespace

PYBIND11_MODULE(fastcnn_emulator_controls, m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.doc() = "Controls of the emulated device.";
  m.def("set_seed", &emulator::set_seed, "seed"_a, unlocked,
        "Draws the order of blocks and threads of the next launches from this seed.");
  m.def("launches", &launches, "One dict of counters per launch since reset(), in order.");
  m.def("reset", &emulator::forget_launch_records, unlocked, "Forgets the launches so far.");
  m.def("set_chip", &set_chip, "compute_capability"_a = 90, "sm_count"_a = 132,
        "shared_bytes_per_block"_a = 227 * 1024, unlocked, "The chip that the planner is told of.");
  m.def("instructions", &instruction_words, "Each instruction's words per lane: in and out.");
  m.def("run_instruction", &run_instruction, "name"_a, "words"_a,
        "Runs an instruction on words of shape [warps, 32, in]; gives [warps, 32, out].");
  m.def("self_tests", &self_test_names, "Kernels that break a rule if told to.");
  m.def("run_self_test", &run_self_test, "name"_a, "faulty"_a, unlocked);
  m.def("thread_order", &self_tests::thread_order, "blocks"_a, "threads"_a, unlocked,
        "The order in which a grid's threads ran, as block * threads + thread.");
}
