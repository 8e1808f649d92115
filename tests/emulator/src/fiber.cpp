#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastcnn::emulator {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

// Stacks of equal alignment would compete for the same cache sets: the colour moves each one's top.
Stack::Stack(size_t color) {
  const size_t mapped = page_bytes() + kStackBytes;
  void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  mprotect(mapping_, page_bytes(), PROT_NONE);
  bottom_ = mapping_ + page_bytes();
  size_ = kStackBytes - (color % 32) * 320;
}

Stack::~Stack() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom_, size_);
#endif
  munmap(mapping_, page_bytes() + kStackBytes);
}

#ifdef FASTCNN_EMULATOR_UCONTEXT

void prepare(Context& context, const Stack& stack, void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack.bottom(), stack.size());  // a fiber may have ended in mid-air on it
#endif
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack.bottom();
  context.machine.uc_stack.ss_size = stack.size();
  context.machine.uc_link = nullptr;
  context.fake_stack = nullptr;
  context.stack_bottom = stack.bottom();
  context.stack_size = stack.size();
  makecontext(&context.machine, entry, 0);
}

void entered_fiber([[maybe_unused]] Context& launcher) {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (launcher.stack_bottom == nullptr) {
    launcher.stack_bottom = bottom;
    launcher.stack_size = size;
  }
#endif
}

void switch_context(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  swapcontext(&from.machine, &to.machine);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

#else

// Saves the callee-saved registers on the running stack and its pointer in *rdi, then takes up the stack rsi.
extern "C" void fastcnn_emulator_switch(void** save, void* stack_pointer);
asm(R"(
.text
.hidden fastcnn_emulator_switch
.globl fastcnn_emulator_switch
.type fastcnn_emulator_switch, @function
fastcnn_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastcnn_emulator_switch, .-fastcnn_emulator_switch
)");

void prepare(Context& context, const Stack& stack, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack.bottom()) + stack.size()) & ~uintptr_t{63};
  void** frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;  // where entry would return to; also aligns its stack as a call does
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--frame = nullptr;
  context.stack_pointer = frame;
}

void entered_fiber(Context&) {}

void switch_context(Context& from, Context& to) {
  fastcnn_emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#endif

}  // namespace fastcnn::emulator
