// What the grouped kernels cover, their slabs, tiles and splits.
#include <algorithm>
#include <numeric>

#include "common/ceil_div.h"
#include "conv2d/grouped.h"
#include "conv2d/split_sum.h"

namespace fastcnn {
namespace {

constexpr int kMostWarps = kGroupedThreads / 32;
constexpr int kWarpSlots = 128;    // pixels that a warp of fprop and dgrad computes
constexpr int kSlabChannels = 32;  // of the wider of the two tensors, unless a group alone is wider
constexpr int kMmaSlabChannels = kGroupedMmaFilters;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;
constexpr int64_t kMostIndex = int64_t{1} << 30;

bool covered_channels(int channels) {
  return channels >= 4 && channels <= 32 && channels % 4 == 0;
}

// How the box of a tile follows from the tile, along one axis.
struct Reach {
  int pixel = 1;  // box rows from pixel to pixel
  int taps = 1;   // box rows that a pixel's taps span
  int rows(int tile) const { return (tile - 1) * pixel + taps; }
};

struct Tile {
  int n = 1, h = 1, w = 1;
  int64_t count = 0;
};

// The tile of at most `slots` pixels whose box fits `capacity` pixels that leaves the least idle slots and
// the least halo. n x h x w is the image that is tiled.
std::optional<Tile> choose_tile(int n, int h, int w, int slots, int64_t capacity, const Reach& reach_h,
                                const Reach& reach_w) {
  std::optional<Tile> best;
  int64_t best_cost = 0;
  const int64_t least_cuts = ceil_div(w, slots);
  for (int64_t cuts = least_cuts; cuts < least_cuts + 8 && cuts <= w; ++cuts) {
    Tile tile;
    tile.w = static_cast<int>(ceil_div(w, cuts));
    int64_t rows = std::min(h, slots / tile.w);
    while (rows > 1 && int64_t{reach_h.rows(rows)} * reach_w.rows(tile.w) > capacity) --rows;
    if (int64_t{reach_h.rows(rows)} * reach_w.rows(tile.w) > capacity) continue;
    tile.h = static_cast<int>(ceil_div(h, ceil_div(h, rows)));
    const int64_t box = int64_t{reach_h.rows(tile.h)} * reach_w.rows(tile.w);
    if (tile.h == h && tile.w == w) {
      tile.n = static_cast<int>(std::min<int64_t>({n, slots / (int64_t{h} * w), capacity / box}));
    }
    tile.count = ceil_div(n, tile.n) * ceil_div(h, tile.h) * ceil_div(w, tile.w);
    const int64_t cost = tile.count * (slots + tile.n * box);
    if (!best || cost < best_cost) {
      best = tile;
      best_cost = cost;
    }
  }
  return best;
}

// An odd number of 16-byte vectors.
int pitch_of(int channels, int vector) {
  return (static_cast<int>(ceil_div(channels, vector)) | 1) * vector;
}

GroupedBox make_box(const TensorView& view, const GradActivation& activation, int n, int channels, int h,
                    int w, int slab_channels, DType dtype) {
  const int bytes = dtype_size(dtype);
  const int vector = 16 / bytes;
  GroupedBox box;
  box.view = view;
  box.activation = activation;
  box.image_n = n;
  box.image_h = h;
  box.image_w = w;
  box.channels = channels;
  box.slab_channels = slab_channels;
  box.pitch = pitch_of(slab_channels, vector);
  const auto aligned = [&](int width) {
    return channels % width == 0 && slab_channels % width == 0 && channels_align(view, n, h, w, width, bytes);
  };
  box.access = aligned(vector) ? vector : (aligned(4) ? 4 : 1);
  box.channels_fast = box.access > 1 || w == 1 || view.stride_c < view.stride_w;
  box.vectors = FastDiv(static_cast<int>(ceil_div(slab_channels, vector)));
  return box;
}

void size_box(GroupedBox& box, int images, int rows, int columns) {
  box.images = images;
  box.rows = rows;
  box.columns = columns;
  box.pixels = FastDiv(box.box_pixels());
  box.row_count = FastDiv(rows);
  box.column_count = FastDiv(columns);
}

// fprop: one phase, every tap in order. Box rows lie `step` image rows apart.
GroupedAxis forward_axis(int taps, int dilation, int step) {
  GroupedAxis axis;
  axis.taps = taps;
  for (int r = 0; r < taps; ++r) {
    axis.tap[r] = r;
    axis.offset[r] = r * dilation / step;
  }
  axis.start[1] = taps;
  return axis;
}

// dgrad: tap r reaches dx row h from dy row (h + pad - r * dilation) / stride, if that divides. The offsets
// are relative to `first`, the least of them.
GroupedAxis backward_axis(int taps, int size, int stride, int pad, int dilation, int& first) {
  GroupedAxis axis;
  axis.taps = taps;
  axis.phases = std::min(stride, size);
  int at = 0;
  first = 0;
  for (int phase = 0; phase < axis.phases; ++phase) {
    axis.start[phase] = at;
    for (int r = 0; r < taps; ++r) {
      const int distance = phase + pad - r * dilation;
      if (distance % stride != 0) continue;
      axis.tap[at] = r;
      axis.phase[at] = phase;
      axis.offset[at] = distance / stride;
      first = at == 0 ? axis.offset[at] : std::min(first, axis.offset[at]);
      ++at;
    }
  }
  axis.start[axis.phases] = at;
  // Taps that reach no pixel of a small image.
  axis.taps = std::max(at, 1);
  for (int i = 0; i < at; ++i) axis.offset[i] -= first;
  return axis;
}

int span(const GroupedAxis& axis) {
  int last = 0;
  for (int i = 0; i < axis.start[axis.phases]; ++i) last = std::max(last, axis.offset[i]);
  return last + 1;
}

// Image rows between box rows: all that pixels and taps land on are multiples of it.
int box_step(int stride, int taps, int dilation) {
  return taps == 1 ? stride : std::gcd(stride, dilation);
}

std::string tile_text(int n, int h, int w, int groups) {
  return std::to_string(groups) + " groups x " + std::to_string(n) + "x" + std::to_string(h) + "x" +
         std::to_string(w) + " pixels";
}

const char* access_text(const GroupedBox& box, DType dtype) {
  if (box.access * dtype_size(dtype) == 16) return "16-byte loads";
  return box.access > 1 ? "8-byte loads" : "one element per load, lanes along the closest axis";
}

// Groups, taps and box of fprop or dgrad, the same for both kernels. Leaves the tile open.
struct ImageShape {
  GroupedImageParams image;
  Reach reach_h, reach_w;
  int64_t slabs = 0;
  int height = 0, width = 0;  // pixels of a phase
};

ImageShape image_shape(Conv2dPass pass, const Conv2dParams& params, int slab_groups) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  ImageShape shape;
  GroupedImageParams& image = shape.image;
  image.groups = problem.groups;
  image.group_in = dgrad ? problem.filters_per_group() : problem.channels_per_group();
  image.group_out = dgrad ? problem.channels_per_group() : problem.filters_per_group();
  image.channels_out = dgrad ? problem.c : problem.k;
  image.image_n = problem.n;
  image.out_h = dgrad ? problem.h : problem.p;
  image.out_w = dgrad ? problem.w : problem.q;
  image.weight = params.weight;
  image.output = params.output;
  if (!dgrad) image.epilogue = params.epilogue;
  image.slab_groups = slab_groups;
  image.slab_out = slab_groups * image.group_out;
  shape.slabs = ceil_div(problem.groups, slab_groups);
  image.slabs = FastDiv(static_cast<int>(shape.slabs));

  if (dgrad) {
    int first_h, first_w;
    image.axis_h =
        backward_axis(problem.r, problem.h, problem.stride_h, problem.pad_top, problem.dilation_h, first_h);
    image.axis_w =
        backward_axis(problem.s, problem.w, problem.stride_w, problem.pad_left, problem.dilation_w, first_w);
    image.first_h = first_h;
    image.first_w = first_w;
    image.box = make_box(params.grad, params.grad_activation, problem.n, problem.k, problem.p, problem.q,
                         slab_groups * image.group_in, params.dtype);
  } else {
    const int step_h = box_step(problem.stride_h, problem.r, problem.dilation_h);
    const int step_w = box_step(problem.stride_w, problem.s, problem.dilation_w);
    image.axis_h = forward_axis(problem.r, problem.dilation_h, step_h);
    image.axis_w = forward_axis(problem.s, problem.dilation_w, step_w);
    image.first_h = -problem.pad_top;
    image.first_w = -problem.pad_left;
    image.box = make_box(params.input, {}, problem.n, problem.c, problem.h, problem.w,
                         slab_groups * image.group_in, params.dtype);
    image.box.row_step = step_h;
    image.box.column_step = step_w;
    shape.reach_h.pixel = problem.stride_h / step_h;
    shape.reach_w.pixel = problem.stride_w / step_w;
  }
  shape.reach_h.taps = span(image.axis_h);
  shape.reach_w.taps = span(image.axis_w);
  image.pixel_rows = shape.reach_h.pixel;
  image.pixel_columns = shape.reach_w.pixel;
  shape.height = static_cast<int>(ceil_div(image.out_h, image.axis_h.phases));
  shape.width = static_cast<int>(ceil_div(image.out_w, image.axis_w.phases));
  image.weight_c = FastDiv(problem.channels_per_group());
  image.weight_k = FastDiv(problem.filters_per_group());
  return shape;
}

// What follows from the tile. False where there are more blocks than can be counted.
bool set_tile(const ImageShape& shape, const Tile& tile, Conv2dPass pass, const Conv2dParams& params,
              const Chip& chip, GroupedPlan& plan) {
  const Conv2dProblem& problem = params.problem;
  const bool dgrad = pass == Conv2dPass::kDgrad;
  GroupedImageParams& image = plan.image;
  image.tile_n = tile.n;
  image.tile_h = tile.h;
  image.tile_w = tile.w;
  image.tile_step_h = dgrad ? tile.h : tile.h * problem.stride_h;
  image.tile_step_w = dgrad ? tile.w : tile.w * problem.stride_w;
  size_box(image.box, tile.n, shape.reach_h.rows(tile.h), shape.reach_w.rows(tile.w));
  image.tile_columns = FastDiv(tile.w);
  image.tile_pixels = FastDiv(tile.h * tile.w);
  image.tiles_h = FastDiv(static_cast<int>(ceil_div(shape.height, tile.h)));
  image.tiles_w = FastDiv(static_cast<int>(ceil_div(shape.width, tile.w)));
  if (tile.count > kMostIndex) return false;
  image.tiles = static_cast<int>(tile.count);
  // Two rounds of three blocks an SM, if there is as much to do: a block's weights serve all of its tiles.
  const int64_t per_block = ceil_div(tile.count * shape.slabs, 6 * int64_t{chip.sm_count});
  image.tiles_per_block = static_cast<int>(per_block);
  plan.grid = shape.slabs * ceil_div(tile.count, per_block);
  plan.shared_bytes = kGroupedArenaBytes;
  plan.tile = tile_text(tile.n, tile.h, tile.w, image.slab_groups);
  plan.reason = std::string("4 to 32 channels a group: several groups a block, pixels in shared memory, ") +
                access_text(image.box, params.dtype) + (plan.tensor_cores ? ", tensor cores" : ", FMA units");
  return plan.grid <= kMostIndex;
}

std::optional<GroupedPlan> plan_image(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                                      int slab_groups) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  const ImageShape shape = image_shape(pass, params, slab_groups);
  GroupedPlan plan;
  plan.image = shape.image;
  GroupedImageParams& image = plan.image;
  plan.filter_run = image.group_out % 8 == 0 ? 8 : 4;
  image.filter_blocks = image.slab_out / plan.filter_run;

  // All weights of the slab stay in shared memory if they leave much of it to pixels, else some tap rows do.
  const int64_t arena = kGroupedArenaBytes / bytes;
  const int64_t weight_row = int64_t{image.axis_w.taps} * image.group_in * image.slab_out;
  image.weight_rows = static_cast<int>(std::min<int64_t>(image.axis_h.taps, arena * 9 / 16 / weight_row));
  if (image.weight_rows == 0) return std::nullopt;
  const int64_t capacity = (arena - image.weight_rows * weight_row) / image.box.pitch;

  std::optional<Tile> tile;
  int pixel_warps = std::min(4, kMostWarps / image.filter_blocks);
  for (;; pixel_warps /= 2) {
    tile = choose_tile(problem.n, shape.height, shape.width, pixel_warps * kWarpSlots, capacity,
                       shape.reach_h, shape.reach_w);
    if (pixel_warps == 1 || (tile && tile->count * shape.slabs >= 2 * chip.sm_count)) break;
  }
  if (!tile || !set_tile(shape, *tile, pass, params, chip, plan)) return std::nullopt;
  image.weight_channels_inner = params.weight.stride_c == 1 && problem.r * problem.s > 1;
  image.weight_s = FastDiv(image.axis_w.taps);
  image.weight_r = FastDiv(image.weight_rows);
  image.vector_store = channels_align(params.output, problem.n, image.out_h, image.out_w,
                                      std::min(plan.filter_run, 16 / bytes), bytes);
  plan.threads = 32 * image.filter_blocks * pixel_warps;
  return plan;
}

// Whether each filter is one run of whole, aligned 16-byte vectors of half precision, channels inside or
// outside.
bool dense_filters(const Conv2dParams& params) {
  const Conv2dProblem& problem = params.problem;
  const TensorView& weight = params.weight;
  const int channels = problem.channels_per_group(), taps = problem.r * problem.s;
  const auto steps = [](int extent, int64_t stride, int64_t expected) {
    return extent == 1 || stride == expected;
  };
  const bool outside = steps(problem.s, weight.stride_w, 1) && steps(problem.r, weight.stride_h, problem.s) &&
                       steps(channels, weight.stride_c, taps);
  const bool inside = steps(channels, weight.stride_c, 1) && steps(problem.s, weight.stride_w, channels) &&
                      steps(problem.r, weight.stride_h, int64_t{channels} * problem.s);
  return (outside || inside) && channels * taps % 8 == 0 && weight.stride_n % 8 == 0 &&
         reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

// Half precision on tensor cores. Nothing where the weights of a group, or the tables of taps, are too many.
std::optional<GroupedPlan> plan_image_mma(Conv2dPass pass, const Conv2dParams& params, const Chip& chip,
                                          int most_slab_groups) {
  const Conv2dProblem& problem = params.problem;
  const int64_t arena = kGroupedArenaBytes / 2;
  for (int slab_groups = most_slab_groups; slab_groups > 0; slab_groups /= 2) {
    const ImageShape shape = image_shape(pass, params, slab_groups);
    GroupedPlan plan;
    plan.tensor_cores = true;
    plan.image = shape.image;
    GroupedImageParams& image = plan.image;
    const int phases_h = image.axis_h.phases, phases_w = image.axis_w.phases;
    if (phases_h * phases_w > kGroupedMaxPhases) return std::nullopt;
    for (int phase = 0; phase < phases_h * phases_w; ++phase) {
      const int h = phase / phases_w, w = phase % phases_w;
      const int64_t taps = int64_t{image.axis_h.start[h + 1] - image.axis_h.start[h]} *
                           (image.axis_w.start[w + 1] - image.axis_w.start[w]);
      image.step_start[phase] = image.steps;
      image.steps += static_cast<int>(ceil_div(taps * image.group_in, 16));
    }
    image.step_start[phases_h * phases_w] = image.steps;
    if (image.steps * 16 / (image.group_in % 8 == 0 ? 8 : 4) > kGroupedMaxChunks ||
        problem.r * problem.s > kGroupedMmaTaps) {
      return std::nullopt;
    }

    // 20 and 24 filters are three blocks of 8, not one of 32.
    const int columns = static_cast<int>(ceil_div(image.group_out, 8));
    const int most = image.group_in % 8 == 0 ? 32 : 16;
    plan.filter_run = columns <= 2 ? 8 * columns : (columns == 3 ? 8 : most);
    image.group_blocks = static_cast<int>(ceil_div(image.group_out, plan.filter_run));
    image.filter_blocks = slab_groups * image.group_blocks;
    const int64_t weights = int64_t{image.filter_blocks} * plan.filter_run * image.steps * 16;
    const int64_t capacity = (arena - weights - 8) / image.box.pitch;
    if (weights > arena * 3 / 4 || (weights > arena / 2 && slab_groups > 1)) continue;

    std::optional<Tile> tile;
    int slots = kGroupedMmaSlots;
    for (;; slots /= 2) {
      tile = choose_tile(problem.n, shape.height, shape.width, slots, capacity, shape.reach_h, shape.reach_w);
      if (slots == kGroupedMmaPixels || (tile && tile->count * shape.slabs >= 2 * chip.sm_count)) break;
    }
    if (!tile) continue;
    if (!set_tile(shape, *tile, pass, params, chip, plan)) return std::nullopt;
    image.pixel_blocks = static_cast<int>(ceil_div(int64_t{tile->n} * tile->h * tile->w, kGroupedMmaPixels));
    image.block_filters = FastDiv(image.filter_blocks);
    image.group_block_div = FastDiv(image.group_blocks);
    image.vector_store =
        channels_align(params.output, problem.n, image.out_h, image.out_w, 8, 2) && image.group_out % 8 == 0;
    image.weight_s = FastDiv(problem.s);
    image.weight_taps = FastDiv(problem.r * problem.s);
    image.weight_channels_inner = params.weight.stride_c == 1 && problem.r * problem.s > 1;
    image.weight_dense = dense_filters(params);
    const int filter_size = problem.channels_per_group() * problem.r * problem.s;
    image.weight_runs = FastDiv(image.weight_dense ? filter_size / 8 : filter_size);
    plan.threads = kGroupedThreads;
    plan.shared_bytes +=
        (kGroupedMmaTaps + kGroupedMmaSlots + kGroupedMaxChunks + kGroupedMmaFilters + 8) * sizeof(int);
    return plan;
  }
  return std::nullopt;
}

// Cuts the sums of a slab into the units of threads: blocks of as many as there are threads, whole rounds of
// threads on different pixels.
int64_t set_thread_units(GroupedWgradParams& wgrad) {
  const int tap_units = static_cast<int>(ceil_div(wgrad.taps, kGroupedUnitTaps));
  wgrad.tap_units = FastDiv(tap_units);
  wgrad.channel_units = FastDiv(wgrad.group_in / 4);
  wgrad.filter_units = FastDiv(wgrad.group_out / 4);
  wgrad.units = wgrad.slab_groups * (wgrad.group_out / 4) * (wgrad.group_in / 4) * tap_units;
  const int64_t unit_tiles = ceil_div(wgrad.units, kGroupedThreads);
  wgrad.block_units = static_cast<int>(ceil_div(wgrad.units, unit_tiles));
  wgrad.streams = kGroupedThreads / wgrad.block_units;
  return unit_tiles;
}

// The same for warps on tensor cores. Nothing where more than half of their products would be dropped.
std::optional<int64_t> set_warp_units(GroupedWgradParams& wgrad) {
  const int filters = wgrad.slab_groups * wgrad.group_out;
  const int blocks = static_cast<int>(ceil_div(filters, 16));
  int most_octets = 0, octets = 0;
  for (int block = 0; block < blocks; ++block) {
    const int first_group = block * 16 / wgrad.group_out;
    const int last_group = std::min((block * 16 + 15) / wgrad.group_out, wgrad.slab_groups - 1);
    const int count = ((last_group + 1) * wgrad.group_in - 1) / 8 - first_group * wgrad.group_in / 8 + 1;
    most_octets = std::max(most_octets, count);
    octets += count;
  }
  if (int64_t{octets} * 16 * 8 > int64_t{2} * filters * wgrad.group_in) return std::nullopt;
  const int parts = static_cast<int>(ceil_div(int64_t{most_octets} * wgrad.taps, kGroupedUnitTiles));
  wgrad.unit_parts = FastDiv(parts);
  wgrad.tap_div = FastDiv(wgrad.taps);
  wgrad.units = blocks * parts;
  const int64_t unit_tiles = ceil_div(wgrad.units, kMostWarps);
  wgrad.block_units = static_cast<int>(ceil_div(wgrad.units, unit_tiles));
  wgrad.streams = kMostWarps / wgrad.block_units;
  return unit_tiles;
}

std::optional<GroupedPlan> plan_wgrad(const Conv2dParams& params, const Chip& chip, bool tensor_cores,
                                      int slab_groups) {
  const Conv2dProblem& problem = params.problem;
  const int bytes = dtype_size(params.dtype);
  GroupedPlan plan;
  plan.tensor_cores = tensor_cores;
  GroupedWgradParams& wgrad = plan.wgrad;
  wgrad.groups = problem.groups;
  wgrad.group_in = problem.channels_per_group();
  wgrad.group_out = problem.filters_per_group();
  wgrad.channels_out = problem.k;
  wgrad.r = problem.r;
  wgrad.s = problem.s;
  wgrad.taps = problem.r * problem.s;
  wgrad.out_h = problem.p;
  wgrad.out_w = problem.q;
  wgrad.output = params.output;
  wgrad.bias_grad = params.bias_grad;
  wgrad.slab_groups = slab_groups;
  const int64_t slabs = ceil_div(problem.groups, slab_groups);
  wgrad.slabs = FastDiv(static_cast<int>(slabs));
  wgrad.s_div = FastDiv(problem.s);

  int64_t unit_tiles;
  if (tensor_cores) {
    const std::optional<int64_t> warp_tiles = set_warp_units(wgrad);
    if (!warp_tiles) return std::nullopt;
    // Further tiles of units read the pixels again: rather a smaller slab.
    if (*warp_tiles > 1 && slab_groups > 1) return plan_wgrad(params, chip, true, slab_groups / 2);
    unit_tiles = *warp_tiles;
  } else {
    unit_tiles = set_thread_units(wgrad);
  }
  wgrad.unit_tiles = FastDiv(static_cast<int>(unit_tiles));

  wgrad.x = make_box(params.input, {}, problem.n, problem.c, problem.h, problem.w,
                     slab_groups * wgrad.group_in, params.dtype);
  wgrad.dy = make_box(params.grad, params.grad_activation, problem.n, problem.k, problem.p, problem.q,
                      slab_groups * wgrad.group_out, params.dtype);
  wgrad.x.row_step = box_step(problem.stride_h, problem.r, problem.dilation_h);
  wgrad.x.column_step = box_step(problem.stride_w, problem.s, problem.dilation_w);
  wgrad.pixel_rows = problem.stride_h / wgrad.x.row_step;
  wgrad.pixel_columns = problem.stride_w / wgrad.x.column_step;
  wgrad.tap_rows = problem.dilation_h / wgrad.x.row_step;
  wgrad.tap_columns = problem.dilation_w / wgrad.x.column_step;
  wgrad.step_h = problem.stride_h;
  wgrad.step_w = problem.stride_w;
  wgrad.first_h = -problem.pad_top;
  wgrad.first_w = -problem.pad_left;
  const Reach reach_h{wgrad.pixel_rows, (problem.r - 1) * wgrad.tap_rows + 1};
  const Reach reach_w{wgrad.pixel_columns, (problem.s - 1) * wgrad.tap_columns + 1};

  // Behind the two boxes lies a vector of zeros.
  const int64_t arena = kGroupedArenaBytes / bytes - kGroupedWgradSlots * wgrad.dy.pitch - 16 / bytes;
  const std::optional<Tile> tile = choose_tile(problem.n, problem.p, problem.q, kGroupedWgradSlots,
                                               arena / wgrad.x.pitch, reach_h, reach_w);
  if (!tile || tile->count > kMostIndex) return std::nullopt;
  size_box(wgrad.x, tile->n, reach_h.rows(tile->h), reach_w.rows(tile->w));
  size_box(wgrad.dy, tile->n, tile->h, tile->w);
  wgrad.tiles = static_cast<int>(tile->count);
  wgrad.tiles_h = FastDiv(static_cast<int>(ceil_div(problem.p, tile->h)));
  wgrad.tiles_w = FastDiv(static_cast<int>(ceil_div(problem.q, tile->w)));

  const int64_t row = int64_t{wgrad.group_in} * wgrad.taps + (params.bias_grad != nullptr ? 1 : 0);
  const int64_t partial_bytes = problem.k * row * static_cast<int64_t>(sizeof(float));
  // One round of two blocks an SM; less, down to one block an SM, where partial sums would be more than a
  // quarter of what is read.
  const int64_t round = 2 * int64_t{chip.sm_count} / (slabs * unit_tiles);
  const int64_t least = ceil_div(chip.sm_count, slabs * unit_tiles);
  const int64_t read_bytes =
      (int64_t{problem.c} * problem.h * problem.w + int64_t{problem.k} * problem.p * problem.q) * problem.n *
      bytes;
  const int64_t wanted = std::min(round, std::max(least, read_bytes / 4 / partial_bytes));
  const int64_t splits = std::clamp<int64_t>(
      wanted, 1, std::max<int64_t>(1, std::min(tile->count, kMostWorkspace / partial_bytes)));
  wgrad.tiles_per_block = static_cast<int>(std::max<int64_t>(1, ceil_div(tile->count, splits)));
  plan.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(tile->count, wgrad.tiles_per_block)));
  if (plan.splits > 1) plan.workspace_bytes = static_cast<size_t>(plan.splits * partial_bytes);
  plan.grid = slabs * unit_tiles * plan.splits;
  if (plan.grid > kMostIndex) return std::nullopt;
  plan.threads = kGroupedThreads;
  plan.shared_bytes = kGroupedArenaBytes + 2 * kGroupedWgradSlots * sizeof(int);
  plan.tile = tile_text(tile->n, tile->h, tile->w, slab_groups);
  plan.reason =
      std::string("4 to 32 channels a group: several groups a block, pixels in shared memory; x in ") +
      access_text(wgrad.x, params.dtype) + ", dy in " + access_text(wgrad.dy, params.dtype) +
      (tensor_cores ? ", tensor cores" : ", FMA units");
  return plan;
}

}  // namespace

std::optional<GroupedPlan> plan_grouped(Conv2dPass pass, const Conv2dParams& params, const Chip& chip) {
  const Conv2dProblem& problem = params.problem;
  if (problem.groups < 2 || params.dtype == DType::kFloat64 ||
      !covered_channels(problem.channels_per_group()) || !covered_channels(problem.filters_per_group()) ||
      chip.shared_bytes_per_block < kGroupedArenaBytes + 8 * 1024) {
    return std::nullopt;
  }
  // The tables of taps and phases are short; an empty batch or image is the generic path's.
  for (const int extent : {problem.r, problem.s, problem.stride_h, problem.stride_w}) {
    if (extent > kGroupedMaxTaps) return std::nullopt;
  }
  for (const int extent : {problem.n, problem.h, problem.w, problem.p, problem.q}) {
    if (extent < 1) return std::nullopt;
  }
  // Rows and columns past the image, by padding or dilation, must not overflow.
  for (const int extent : {problem.pad_top, problem.pad_left, problem.dilation_h, problem.dilation_w}) {
    if (extent > 1 << 20) return std::nullopt;
  }
  const int widest = std::max(problem.channels_per_group(), problem.filters_per_group());
  const auto slab_groups = [&](int channels) { return std::clamp(channels / widest, 1, problem.groups); };
  const bool half = dtype_size(params.dtype) == 2;
  if (pass == Conv2dPass::kWgrad) {
    if (half) {
      if (auto plan = plan_wgrad(params, chip, true, slab_groups(kMmaSlabChannels))) return plan;
    }
    return plan_wgrad(params, chip, false, slab_groups(kSlabChannels));
  }
  if (half) {
    if (auto plan = plan_image_mma(pass, params, chip, slab_groups(kMmaSlabChannels))) return plan;
  }
  return plan_image(pass, params, chip, slab_groups(kSlabChannels));
}

void launch_grouped(Conv2dPass pass, const Conv2dParams& params, const GroupedPlan& plan,
                    cudaStream_t stream) {
  if (pass != Conv2dPass::kWgrad) {
    visit_narrow_dtype(params.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (sizeof(T) == 2) {
        if (plan.tensor_cores) {
          return grouped::launch_image_mma<T>(plan.image, pass == Conv2dPass::kDgrad, plan, stream);
        }
      }
      grouped::launch_image<T>(plan.image, pass == Conv2dPass::kDgrad, plan, stream);
    });
    return;
  }
  GroupedWgradParams wgrad = plan.wgrad;
  if (plan.splits > 1) wgrad.partials = static_cast<float*>(params.workspace);
  visit_narrow_dtype(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) == 2) {
      if (plan.tensor_cores) return grouped::launch_wgrad_mma<T>(wgrad, plan, stream);
    }
    grouped::launch_wgrad<T>(wgrad, plan, stream);
  });
  if (plan.splits == 1) return;
  SplitSumParams sum;
  sum.partials = wgrad.partials;
  sum.output = params.output;
  sum.dtype = params.dtype;
  sum.splits = plan.splits;
  sum.n = wgrad.channels_out;
  sum.c = wgrad.group_in;
  sum.h = wgrad.r;
  sum.w = wgrad.s;
  if (params.bias_grad != nullptr) {
    sum.tail_output = params.bias_grad;
    sum.tail = wgrad.channels_out;
  }
  launch_split_sum(sum, stream);
}

}  // namespace fastcnn
