// Implicit-GEMM convolution for every shape, layout and dtype, on FMA units: the fallback and the oracle of
// the faster kernels.
//
// The operands are gathered straight from the tensors (no im2col buffer, no layout copy); generic_tile.cuh
// multiplies them. Block order: column tiles run fastest, so that blocks in flight share the gathered rows
// through L2. Floor: 2*N*P*Q*K*(C/G)*R*S flops at the FMA rate; bytes of each tensor once. Bound by FMA for
// reductions past a few dozen; every column tile gathers its rows again, which L2 absorbs. dgrad with a
// stride takes the phases of the stride one after another, those with the most taps first, so that short
// tiles fill the end of the launch. wgrad's reduction over all pixels is cut into splits whose partial sums
// split_sum adds in order, where that is worth a second launch; fprop and dgrad are one launch always.
// ptxas (sm_80, sm_90a): no spills; 128 registers at most for float32 and half precision, two blocks an SM;
// the narrow tile 56 to 95, two to four blocks.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/generic_operands.cuh"
#include "conv2d/generic_tile.cuh"
#include "conv2d/split_sum.h"

namespace fastcnn::generic {

struct BlockPosition {
  int row_tile, column_tile, group;
  int part;  // wgrad: of the splits; dgrad: of the phases
  __device__ explicit BlockPosition(const GenericParams& params) {
    int rest = params.column_tiles.divide(static_cast<int>(blockIdx.x), column_tile);
    rest = params.row_tiles.divide(rest, row_tile);
    part = params.group_count.divide(rest, group);
  }
};

// Two blocks an SM hide each other's barriers and load latency; float64 needs the registers of one.
template <class T>
inline constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;

// fprop and dgrad: rows are pixels of `output`, columns its channels within the group.
template <class T, class Tile, int V, bool Activated, class Phase>
__global__ __launch_bounds__(Tile::kThreads, kBlocksPerSm<T>) void image_kernel(
    const __grid_constant__ GenericParams params) {
  using Acc = accumulator_t<T>;
  const BlockPosition block(params);
  const Phase phase(params, block.part);
  const int64_t first_row = int64_t{block.row_tile} * Tile::kBM;
  const int first_column = block.column_tile * Tile::kBN;
  if (first_row >= phase.rows()) return;

  const typename Tile::Position position(threadIdx.x, params.output.stride_c != 1);
  Products<Tile, Acc> products;
  NoRowSum no_row_sum;
  multiply<Tile>(GatheredImage<T, V, Activated, Phase>(phase, first_row, block.group),
                 TapWeight<T, V, Phase>(phase, first_column, block.group), phase.reduction(), position,
                 products, no_row_sum);
  const auto& sums = products.sums;

  const PixelRange<Phase> pixels(phase, first_row);
  const Epilogue epilogue = Phase::kDgrad ? Epilogue{} : params.epilogue;
  T* const output = static_cast<T*>(params.output.data) + phase.output_offset();
  // Runs of columns outside, rows inside: a column's bias is loaded once.
#pragma unroll
  for (int j = 0; j < Tile::kColumns; j += Tile::kRun) {
    const int column = first_column + position.column(j);
    const int channel = block.group * params.columns + column;
    Acc bias[Tile::kRun];
#pragma unroll
    for (int u = 0; u < Tile::kRun; ++u) {
      bias[u] = column + u < params.columns ? load_bias<T>(epilogue, channel + u) : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const int row = position.row(i);
      if (first_row + row >= phase.rows()) continue;
      const Pixel pixel = pixels.at(row);
      const int64_t offset = pixel.n * params.output.stride_n + pixel.h * params.output.stride_h +
                             pixel.w * params.output.stride_w + channel * params.output.stride_c;
      if (Tile::kRun > 1 && params.vector_store) {
        if (column < params.columns) {
          Acc run[Tile::kRun];
#pragma unroll
          for (int u = 0; u < Tile::kRun; ++u) run[u] = sums[i][j + u];
          store_global<Tile::kRun>(output + offset, finish<T>(epilogue, run, bias, offset));
        }
      } else {
#pragma unroll
        for (int u = 0; u < Tile::kRun; ++u) {
          if (column + u >= params.columns) continue;
          const Acc one[1] = {sums[i][j + u]}, one_bias[1] = {bias[u]};
          const int64_t at = offset + u * params.output.stride_c;
          store_global<1>(output + at, finish<T>(epilogue, one, one_bias, at));
        }
      }
    }
  }
}

// The weight gradient of filter `row` (of all K) at column (r, s, c).
template <class T>
__device__ inline T* weight_element(const GenericParams& params, int row, int column) {
  const Tap tap = tap_at(WholePass(params, 0), column);
  return static_cast<T*>(params.output.data) + row * params.output.stride_n +
         tap.channel * params.output.stride_c + tap.r * params.output.stride_h +
         tap.s * params.output.stride_w;
}

// Rows are filters of the group, columns taps. One split writes the gradient; more write partial sums
// [split][filter of all K][tap], after each split's those of the bias gradient, if it is asked for. Its rows
// of the output gradient are added up by the blocks of the first column tile, as they pass.
template <class T, class Tile, int V, bool Activated>
__global__ __launch_bounds__(Tile::kThreads, kBlocksPerSm<T>) void wgrad_kernel(
    const __grid_constant__ GenericParams params) {
  using Acc = accumulator_t<T>;
  const BlockPosition block(params);
  const int first_row = block.row_tile * Tile::kBM;
  const int first_column = block.column_tile * Tile::kBN;
  const WholePass pass(params, 0);
  const int64_t first_pixel = block.part * params.split_length;
  const int64_t left = params.reduction - first_pixel;

  const typename Tile::Position position(threadIdx.x, false);
  Products<Tile, Acc> products;
  RowSum<Tile, Acc> row_sum(params.bias_grad != nullptr && block.column_tile == 0, threadIdx.x);
  multiply<Tile>(WgradGrad<T, V, Activated>(pass, first_row, block.group, first_pixel),
                 WgradInput<T, V>(pass, first_column, block.group, first_pixel),
                 static_cast<int>(left < params.split_length ? left : params.split_length), position,
                 products, row_sum);
  const auto& sums = products.sums;

  const int filters = static_cast<int>(params.rows);
  const int64_t split_elements =
      int64_t{params.filters} * params.columns + (params.bias_grad != nullptr ? params.filters : 0);
  Acc* const partials = static_cast<Acc*>(params.workspace) + block.part * split_elements;
  if (row_sum.active() && first_row + row_sum.row() < filters) {
    const int filter = block.group * filters + first_row + row_sum.row();
    if (params.splits == 1) {
      store_global(static_cast<T*>(params.bias_grad) + filter, from_accumulator<T>(row_sum.total()));
    } else {
      store_global(partials + int64_t{params.filters} * params.columns + filter, row_sum.total());
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = first_row + position.row(i);
    if (row >= filters) continue;
    const int filter = block.group * filters + row;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      const int column = first_column + position.column(j);
      if (column >= params.columns) continue;
      if (params.splits == 1) {
        store_global(weight_element<T>(params, filter, column), from_accumulator<T>(sums[i][j]));
      } else {
        store_global(partials + (int64_t{filter} * params.columns + column), sums[i][j]);
      }
    }
  }
}

template <class T, class Tile>
LaunchConfig launch_config(const GenericParams& params, cudaStream_t stream) {
  LaunchConfig config;
  config.grid =
      dim3(static_cast<unsigned>(int64_t{params.row_tiles.divisor()} * params.column_tiles.divisor() *
                                 params.group_count.divisor() * params.parts));
  config.threads = Tile::kThreads;
  config.shared_bytes = sizeof(SharedLayout<accumulator_t<T>, Tile>);
  config.stream = stream;
  return config;
}

// Calls f with the tile and the vector width (as types) that the plan names; float64 has the narrow scalar
// path only.
template <class T, class F>
void visit_variant(const Conv2dPlan& plan, F&& f) {
  if constexpr (sizeof(T) == 8) {
    f(TypeTag<NarrowTile>{}, std::integral_constant<int, 1>{});
  } else {
    constexpr int kWide = 16 / sizeof(T);
    const auto with_tile = [&](auto tile) {
      if (plan.vectorized) {
        f(tile, std::integral_constant<int, kWide>{});
      } else {
        f(tile, std::integral_constant<int, 1>{});
      }
    };
    switch (plan.tile) {
      case Conv2dTile::kWide:
        with_tile(TypeTag<WideTile>{});
        return;
      case Conv2dTile::kNarrow:
        with_tile(TypeTag<NarrowTile>{});
        return;
      case Conv2dTile::kSmall:
        with_tile(TypeTag<SmallTile>{});
        return;
      case Conv2dTile::kTiny:
        with_tile(TypeTag<TinyTile>{});
        return;
    }
  }
}

template <class T, class Phase, bool Activated>
void launch_image(const char* name, const GenericParams& params, const Conv2dPlan& plan,
                  cudaStream_t stream) {
  visit_variant<T>(plan, [&](auto tile_tag, auto vector) {
    using Tile = typename decltype(tile_tag)::type;
    constexpr int V = decltype(vector)::value;
    launch(name, image_kernel<T, Tile, V, Activated, Phase>, launch_config<T, Tile>(params, stream), params);
  });
}

template <class T>
void launch_fprop(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream) {
  launch_image<T, WholePass, false>("conv2d::generic_fprop", params, plan, stream);
}

template <class T>
void launch_dgrad(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream) {
  if (params.grad_activation.saved != nullptr) {
    launch_image<T, StridePhase, true>("conv2d::generic_dgrad", params, plan, stream);
  } else {
    launch_image<T, StridePhase, false>("conv2d::generic_dgrad", params, plan, stream);
  }
}

// The partial sums are laid out as [split][filter] and then taps in the order of the reduction index.
inline SplitSumParams split_sum_params(const GenericParams& params) {
  const int channels = params.inner_channels.divisor();
  SplitSumParams sum;
  sum.partials = params.workspace;
  sum.output = params.output;
  sum.dtype = params.dtype;
  sum.splits = params.splits;
  sum.n = params.filters;
  sum.c = channels;
  sum.h = params.r;
  sum.w = params.s;
  if (params.channels_inner) {
    sum.c = params.r;
    sum.h = params.s;
    sum.w = channels;
    sum.output.stride_c = params.output.stride_h;
    sum.output.stride_h = params.output.stride_w;
    sum.output.stride_w = params.output.stride_c;
  }
  if (params.bias_grad != nullptr) {
    sum.tail = params.filters;
    sum.tail_output = params.bias_grad;
  }
  return sum;
}

template <class T>
void launch_wgrad(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream) {
  visit_variant<T>(plan, [&](auto tile_tag, auto vector) {
    using Tile = typename decltype(tile_tag)::type;
    constexpr int V = decltype(vector)::value;
    const auto with_source = [&](auto activated) {
      launch("conv2d::generic_wgrad", wgrad_kernel<T, Tile, V, decltype(activated)::value>,
             launch_config<T, Tile>(params, stream), params);
    };
    if (params.grad_activation.saved != nullptr) {
      with_source(std::true_type{});
    } else {
      with_source(std::false_type{});
    }
  });
  if (plan.splits > 1) launch_split_sum(split_sum_params(params), stream);
}

}  // namespace fastcnn::generic
