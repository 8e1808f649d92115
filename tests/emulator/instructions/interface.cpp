// The C interface of a library of single instructions, for ctypes. Pointers are device pointers.
#include <cstdint>
#include <exception>
#include <string>

#include "instructions/instructions.h"

#define FASTCNN_EXPORT extern "C" __attribute__((visibility("default")))

using fastcnn::instructions::all_instructions;

FASTCNN_EXPORT int fastcnn_instruction_count() {
  return all_instructions().count;
}

FASTCNN_EXPORT const char* fastcnn_instruction(int index, int* inputs, int* outputs) {
  const auto& instruction = all_instructions().first[index];
  *inputs = instruction.inputs;
  *outputs = instruction.outputs;
  return instruction.name;
}

// Null, or what went wrong.
FASTCNN_EXPORT const char* fastcnn_run_instruction(int index, const uint32_t* in, uint32_t* out, int warps,
                                                   void* stream) {
  static thread_local std::string error;
  try {
    const auto& instruction = all_instructions().first[index];
    instruction.run(instruction.name, in, out, warps, static_cast<cudaStream_t>(stream));
    return nullptr;
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
}
