// Single instructions, each run by whole warps over words: what their unit tests and the conformance of the
// emulator are made of. The same source is compiled for the GPU and for the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn::instructions {

#pragma GCC visibility push(default)

// Reads `inputs` 32-bit words per lane, writes `outputs`; arrays are warps x 32 x words.
struct Instruction {
  const char* name;
  int inputs;
  int outputs;
  void (*run)(const char* name, const uint32_t* in, uint32_t* out, int warps, cudaStream_t stream);
};

struct InstructionList {
  const Instruction* first;
  int count;
};
InstructionList all_instructions();

#pragma GCC visibility pop

}  // namespace fastcnn::instructions
