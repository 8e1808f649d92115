// Switching between stacks: hand-written on x86-64, ucontext elsewhere and under sanitizers, which need to be
// told of every switch.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__) || !defined(__x86_64__)
#define FASTCNN_EMULATOR_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

// A stack with an unmapped page below it: running over its end stops the process.
class Stack {
 public:
  explicit Stack(size_t color);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  char* bottom() const { return bottom_; }
  size_t size() const { return size_; }

 private:
  char* mapping_;
  char* bottom_;
  size_t size_;
};

// A suspended flow of control.
struct Context {
#ifdef FASTCNN_EMULATOR_UCONTEXT
  ucontext_t machine;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
#else
  void* stack_pointer = nullptr;
#endif
};

// Makes `context` start entry() on the stack when it is first switched to. entry must not return, and begins
// with entered_fiber().
void prepare(Context& context, const Stack& stack, void (*entry)());
void entered_fiber(Context& launcher);
void switch_context(Context& from, Context& to);

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
