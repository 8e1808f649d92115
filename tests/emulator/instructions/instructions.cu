#include "instructions/instructions.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "common/memory.cuh"
#include "common/shared.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::instructions {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Scratch {
  SharedArray<uint32_t, 256> words;
};

struct Words {
  const uint32_t* in;
  uint32_t* out;
};

template <class To, class From>
__device__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Operation::run gets the lane's words, where they lie in global memory, and the block's shared memory.
template <class Operation>
__global__ void __launch_bounds__(32) instruction_kernel(const __grid_constant__ Words words) {
  const size_t lane = static_cast<size_t>(blockIdx.x) * 32 + threadIdx.x;
  uint32_t in[Operation::kInputs];
  uint32_t out[Operation::kOutputs];
  const uint32_t* source = words.in + lane * Operation::kInputs;
  for (int i = 0; i < Operation::kInputs; ++i) in[i] = load_global(source + i);
  Operation::run(in, out, source, shared_memory<Scratch>());
  for (int i = 0; i < Operation::kOutputs; ++i)
    store_global(words.out + lane * Operation::kOutputs + i, out[i]);
}

template <class Operation>
void run_operation(const char* name, const uint32_t* in, uint32_t* out, int warps, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(warps));
  config.threads = 32;
  config.shared_bytes = sizeof(Scratch);
  config.stream = stream;
  launch(name, &instruction_kernel<Operation>, config, Words{in, out});
}

template <class Operation>
Instruction instruction(const char* name) {
  return {name, Operation::kInputs, Operation::kOutputs, &run_operation<Operation>};
}

// In: a, b and c fragments. Out: d.
template <class Multiply>
struct Mma {
  static constexpr int kInputs = 10;
  static constexpr int kOutputs = 4;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
    const uint32_t b[2] = {in[4], in[5]};
    float c[4];
    float d[4];
    for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(in[6 + i]);
    Multiply::run(d, a, b, c);
    for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(d[i]);
  }
};

template <class T>
struct Multiply16 {
  static __device__ void run(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4]) {
    ptx::mma_m16n8k16<T>(d, a, b, c);
  }
};

struct MultiplyTf32 {
  static __device__ void run(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4]) {
    ptx::mma_m16n8k8_tf32(d, a, b, c);
  }
};

// In: 4 words of the shared bytes, which are 32 rows of 16 bytes; the number of the row whose address the
// lane gives. Out: its words of the matrices.
template <int Count, bool Transposed>
struct LdMatrix {
  static constexpr int kInputs = 5;
  static constexpr int kOutputs = Count;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch& scratch) {
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 4; ++i) scratch.words.store(4 * lane + i, in[i]);
    __syncthreads();
    const uint32_t address = scratch.words.address(4 * static_cast<int>(in[4]));
    uint32_t matrices[Count];
    if constexpr (Count == 1) ptx::ldmatrix_x1<Transposed>(matrices, address);
    if constexpr (Count == 2) ptx::ldmatrix_x2<Transposed>(matrices, address);
    if constexpr (Count == 4) ptx::ldmatrix_x4<Transposed>(matrices, address);
    for (int i = 0; i < Count; ++i) out[i] = matrices[i];
  }
};

// In: 4 words to copy, the predicate, 3 unused words that keep the lanes 16 bytes aligned. Out: 4 words of
// the lane after it, which were ones before the copy.
template <int Bytes>
struct CpAsync {
  static constexpr int kInputs = 8;
  static constexpr int kOutputs = 4;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t* source, Scratch& scratch) {
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 4; ++i) scratch.words.store(4 * lane + i, 0xFFFFFFFFu);
    ptx::cp_async<Bytes>(scratch.words.address(4 * lane), source, in[4] != 0);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[i] = scratch.words.load(4 * ((lane + 1) % 32) + i);
  }
};

// In: 4 words, copied in two groups of 2. Out: the first group's words after the wait that leaves one group
// pending, then the second's.
struct CpAsyncGroups {
  static constexpr int kInputs = 4;
  static constexpr int kOutputs = 4;
  static __device__ void run(const uint32_t*, uint32_t* out, const uint32_t* source, Scratch& scratch) {
    const int lane = static_cast<int>(threadIdx.x);
    for (int group = 0; group < 2; ++group) {
      ptx::cp_async<8>(scratch.words.address(4 * lane + 2 * group), source + 2 * group);
      ptx::cp_async_commit();
    }
    ptx::cp_async_wait<1>();
    for (int i = 0; i < 2; ++i) out[i] = scratch.words.load(4 * lane + i);
    ptx::cp_async_wait<0>();
    for (int i = 2; i < 4; ++i) out[i] = scratch.words.load(4 * lane + i);
  }
};

enum class Shuffling { kIndex, kUp, kDown, kXor };

template <Shuffling Mode, class T>
__device__ T shuffled(T value, int operand, int width) {
  if constexpr (Mode == Shuffling::kIndex) return __shfl_sync(kAllLanes, value, operand, width);
  if constexpr (Mode == Shuffling::kUp) return __shfl_up_sync(kAllLanes, value, operand, width);
  if constexpr (Mode == Shuffling::kDown) return __shfl_down_sync(kAllLanes, value, operand, width);
  if constexpr (Mode == Shuffling::kXor) return __shfl_xor_sync(kAllLanes, value, operand, width);
}

// In: low and high word of a value, the operand, the width. Out: the value's words as a uint32 and as a
// double.
template <Shuffling Mode>
struct Shuffled {
  static constexpr int kInputs = 4;
  static constexpr int kOutputs = 3;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const int operand = static_cast<int>(in[2]);
    const int width = static_cast<int>(in[3]);
    out[0] = shuffled<Mode>(in[0], operand, width);
    const auto both = static_cast<unsigned long long>(in[1]) << 32 | in[0];
    const double moved = shuffled<Mode>(bits_as<double>(both), operand, width);
    const auto bits = bits_as<unsigned long long>(moved);
    out[1] = static_cast<uint32_t>(bits);
    out[2] = static_cast<uint32_t>(bits >> 32);
  }
};

// In: a predicate. Out: ballot, any, all, __syncthreads_count, _or and _and.
struct Votes {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 6;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const int predicate = static_cast<int>(in[0]);
    out[0] = __ballot_sync(kAllLanes, predicate);
    out[1] = __any_sync(kAllLanes, predicate) != 0;
    out[2] = __all_sync(kAllLanes, predicate) != 0;
    out[3] = static_cast<uint32_t>(__syncthreads_count(predicate));
    out[4] = __syncthreads_or(predicate) != 0;
    out[5] = __syncthreads_and(predicate) != 0;
  }
};

// In: a float. Out: its float16, bfloat16 and tf32 bits.
struct RoundFloat {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 3;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const float x = __uint_as_float(in[0]);
    out[0] = __half_as_ushort(__float2half_rn(x));
    out[1] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    out[2] = ptx::cvt_rna_tf32(x);
  }
};

// In: 16 bits. Out: the float that they are as float16 and as bfloat16.
struct WidenBits {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 2;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const auto bits = static_cast<unsigned short>(in[0]);
    out[0] = __float_as_uint(__half2float(__ushort_as_half(bits)));
    out[1] = __float_as_uint(__bfloat162float(__ushort_as_bfloat16(bits)));
  }
};

// In: two words. Out: their high product, and of the first the bit count, leading zeros, first set bit and
// reversal.
struct Integers {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = 5;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    out[0] = __umulhi(in[0], in[1]);
    out[1] = static_cast<uint32_t>(__popc(in[0]));
    out[2] = static_cast<uint32_t>(__clz(static_cast<int>(in[0])));
    out[3] = static_cast<uint32_t>(__ffs(static_cast<int>(in[0])));
    out[4] = __brev(in[0]);
  }
};

// In: three floats. Out: min and max of the first two, and the fused a*b + c.
struct Floats {
  static constexpr int kInputs = 3;
  static constexpr int kOutputs = 3;
  static __device__ void run(const uint32_t* in, uint32_t* out, const uint32_t*, Scratch&) {
    const float a = __uint_as_float(in[0]);
    const float b = __uint_as_float(in[1]);
    out[0] = __float_as_uint(min(a, b));
    out[1] = __float_as_uint(max(a, b));
    out[2] = __float_as_uint(__fmaf_rn(a, b, __uint_as_float(in[2])));
  }
};

const Instruction kInstructions[] = {
    instruction<Mma<Multiply16<__half>>>("mma_m16n8k16_float16"),
    instruction<Mma<Multiply16<__nv_bfloat16>>>("mma_m16n8k16_bfloat16"),
    instruction<Mma<MultiplyTf32>>("mma_m16n8k8_tf32"),
    instruction<LdMatrix<1, false>>("ldmatrix_x1"),
    instruction<LdMatrix<2, false>>("ldmatrix_x2"),
    instruction<LdMatrix<4, false>>("ldmatrix_x4"),
    instruction<LdMatrix<1, true>>("ldmatrix_x1_trans"),
    instruction<LdMatrix<2, true>>("ldmatrix_x2_trans"),
    instruction<LdMatrix<4, true>>("ldmatrix_x4_trans"),
    instruction<CpAsync<4>>("cp_async_4"),
    instruction<CpAsync<8>>("cp_async_8"),
    instruction<CpAsync<16>>("cp_async_16"),
    instruction<CpAsyncGroups>("cp_async_groups"),
    instruction<Shuffled<Shuffling::kIndex>>("shfl"),
    instruction<Shuffled<Shuffling::kUp>>("shfl_up"),
    instruction<Shuffled<Shuffling::kDown>>("shfl_down"),
    instruction<Shuffled<Shuffling::kXor>>("shfl_xor"),
    instruction<Votes>("votes"),
    instruction<RoundFloat>("round_float"),
    instruction<WidenBits>("widen_bits"),
    instruction<Integers>("integers"),
    instruction<Floats>("floats"),
};

}  // namespace

InstructionList all_instructions() {
  return {kInstructions, static_cast<int>(sizeof(kInstructions) / sizeof(kInstructions[0]))};
}

}  // namespace fastcnn::instructions
