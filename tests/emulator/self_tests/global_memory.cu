#include "self_tests/run.h"

namespace fastcnn::self_tests {
namespace {

__global__ void read_beyond_end(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.out + t, load_global(arguments.in + (arguments.faulty ? t + 1 : t)));
}

__global__ void read_before_begin(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.out + t, load_global(arguments.in + (arguments.faulty ? t - 1 : t)));
}

__global__ void write_beyond_end(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.out + (arguments.faulty ? t + 1 : t), t);
}

__global__ void global_vector_beyond_end(const __grid_constant__ Arguments arguments) {
  if (threadIdx.x == 0) load_global<4>(arguments.in + (arguments.faulty ? kThreads : kThreads - 4));
}

__global__ void misaligned_read(const __grid_constant__ Arguments arguments) {
  if (threadIdx.x == 3) load_global<4>(arguments.in + (arguments.faulty ? 2 : 4));
}

__global__ void misaligned_write(const __grid_constant__ Arguments arguments) {
  const Vector<int, 2> values{{1, 2}};
  if (threadIdx.x == 0) store_global<2>(arguments.out + (arguments.faulty ? 3 : 4), values);
}

__global__ void write_to_read_only(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.faulty ? const_cast<int*>(arguments.in) + t : arguments.out + t, t);
}

__global__ void written_twice(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.out + (arguments.faulty ? t / 2 : t), t);
}

__global__ void read_what_it_wrote(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(arguments.out + t, t);
  if (arguments.faulty) load_global(arguments.out + t);
}

__global__ void undeclared_kernel(const __grid_constant__ Arguments arguments) {
  load_global(arguments.in + threadIdx.x);
}

void undeclared(bool faulty) {
  Buffers buffers;
  emulator::BufferScope scope;
  if (!faulty) scope.may_read(buffers.in.data(), sizeof(buffers.in));
  launch("self_test", &undeclared_kernel, one_block(), Arguments{buffers.in.data(), nullptr, faulty});
}

__global__ void fill(const __grid_constant__ Arguments arguments) {
  const int t = static_cast<int>(threadIdx.x);
  if (t > 0 || !arguments.faulty) store_global(arguments.out + t, t);
}

// A workspace that an earlier launch left partly unwritten.
void unwritten_workspace(bool faulty) {
  Buffers workspace;
  Buffers buffers;
  emulator::BufferScope scope;
  scope.may_write(workspace.out.data(), sizeof(workspace.out));
  scope.may_write(buffers.out.data(), sizeof(buffers.out));
  launch("self_test_fill", &fill, one_block(), Arguments{nullptr, workspace.out.data(), faulty});
  launch("self_test", &read_what_it_wrote, one_block(), Arguments{nullptr, buffers.out.data(), false});
  launch("self_test", &undeclared_kernel, one_block(), Arguments{workspace.out.data(), nullptr, false});
}

const SelfTest kTests[] = {
    {"read_beyond_end", &run_kernel<&read_beyond_end>},
    {"read_before_begin", &run_kernel<&read_before_begin>},
    {"write_beyond_end", &run_kernel<&write_beyond_end>},
    {"global_vector_beyond_end", &run_kernel<&global_vector_beyond_end>},
    {"misaligned_read", &run_kernel<&misaligned_read>},
    {"misaligned_write", &run_kernel<&misaligned_write>},
    {"write_to_read_only", &run_kernel<&write_to_read_only>},
    {"written_twice", &run_kernel<&written_twice>},
    {"read_what_it_wrote", &run_kernel<&read_what_it_wrote>},
    {"undeclared", &undeclared},
    {"unwritten_workspace", &unwritten_workspace},
};

}  // namespace

SelfTestList global_memory_tests() {
  return list_of(kTests);
}

}  // namespace fastcnn::self_tests
