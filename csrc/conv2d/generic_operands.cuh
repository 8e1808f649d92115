// The operands of the generic convolution: which element of which tensor stands at (x, k) of an operand tile.
//
// Each gives at_x (what its address takes from x), at_k (what it takes from the reduction index) and load.
// Offsets are 64-bit; an element outside the tensor (padding, a tile's overhang, a tap between strides) reads
// as zero. kVector > 1 asks for channels_inner, channels contiguous in memory, and channel counts divisible
// by kVector. What load() brings is in flight until value() asks for its elements.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common/memory.cuh"
#include "conv2d/generic.h"
#include "conv2d/generic_phase.cuh"
#include "conv2d/grad_activation.cuh"

namespace fastcnn::generic {

// A coordinate that every bounds check refuses, whatever tap is added to it.
inline constexpr int kOutside = -(1 << 30);

struct Tap {
  int r, s, channel;
};

template <class Phase>
__device__ inline Tap tap_at(const Phase& phase, int index) {
  Tap tap;
  if (phase.params.channels_inner) {
    const int rs = phase.params.inner_channels.divide(index, tap.channel);
    tap.r = phase.inner_s().divide(rs, tap.s);
  } else {
    int rs;
    tap.channel = phase.inner_rs().divide(index, rs);
    tap.r = phase.inner_s().divide(rs, tap.s);
  }
  return tap;
}

struct Pixel {
  int n, h, w;
};

// Pixels counted from a first one whose 64-bit index is taken apart once a block.
template <class Phase>
class PixelRange {
 public:
  __device__ PixelRange(const Phase& phase, int64_t first) : phase_(phase) {
    const int64_t pixels = phase.image_pixels().divisor();
    first_image_ = static_cast<int>(first / pixels);
    first_pixel_ = static_cast<int>(first % pixels);
  }
  __device__ Pixel at(int index) const {
    Pixel pixel;
    int in_image;
    pixel.n = first_image_ + phase_.image_pixels().divide(first_pixel_ + index, in_image);
    pixel.h = phase_.image_width().divide(in_image, pixel.w);
    return pixel;
  }

 private:
  const Phase& phase_;
  int first_image_, first_pixel_;
};

struct LinearAt {
  int64_t offset;
  bool valid;
};
struct ImageAt {
  int64_t offset;
  int h, w;
};
struct TapAt {
  int64_t offset;
  int h, w;
  bool valid;
};

__device__ inline ImageAt outside() {
  return {0, kOutside, kOutside};
}

// The element that the tap at the origin sees from a pixel.
template <class Phase>
__device__ inline ImageAt image_at(const Phase& phase, const Pixel& pixel) {
  const GenericParams& params = phase.params;
  const int h = pixel.h * params.pixel_h + phase.first_h();
  const int w = pixel.w * params.pixel_w + phase.first_w();
  return {pixel.n * params.input.stride_n + h * params.input.stride_h + w * params.input.stride_w, h, w};
}

template <class Phase>
__device__ inline TapAt tap_offset(const Phase& phase, int index, bool valid) {
  if (!valid) return {0, 0, 0, false};
  const GenericParams& params = phase.params;
  const Tap tap = tap_at(phase, index);
  const int h = tap.r * params.tap_h, w = tap.s * params.tap_w;
  return {tap.channel * params.input.stride_c + h * params.input.stride_h + w * params.input.stride_w, h, w,
          true};
}

__device__ inline bool sees(const GenericParams& params, const ImageAt& pixel, const TapAt& tap) {
  return tap.valid && static_cast<unsigned>(pixel.h + tap.h) < static_cast<unsigned>(params.image_h) &&
         static_cast<unsigned>(pixel.w + tap.w) < static_cast<unsigned>(params.image_w);
}

// The tensor that an operand is gathered from, as it is.
template <class T, int V>
struct PlainSource {
  using Loaded = Vector<T, V>;
  const T* base;

  __device__ PlainSource(const TensorView& view, int64_t start, const GradActivation&)
      : base(static_cast<const T*>(view.data) + start) {}
  __device__ Loaded load_if(bool predicate, int64_t offset) const {
    return load_global_if<V>(predicate, base + offset);
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const { return loaded; }
};

// The output gradient, taken back through the activation once its elements are needed: both loads fly while
// the step before is computed.
template <class T, int V>
struct ActivatedSource {
  struct Loaded {
    Vector<T, V> grad, saved;
  };
  const T* grad;
  const T* saved;
  const GradActivation& activation;

  __device__ ActivatedSource(const TensorView& view, int64_t start, const GradActivation& through)
      : grad(static_cast<const T*>(view.data) + start),
        saved(static_cast<const T*>(through.saved) + start),
        activation(through) {}
  __device__ Loaded load_if(bool predicate, int64_t offset) const {
    return {load_global_if<V>(predicate, grad + offset), load_global_if<V>(predicate, saved + offset)};
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const {
    return through_activation(activation, loaded.grad, loaded.saved);
  }
};

template <class T, int V, bool Activated>
using Source = std::conditional_t<Activated, ActivatedSource<T, V>, PlainSource<T, V>>;

// fprop A and dgrad A: x is a pixel of the result, k a tap; the element of `input` that the tap sees from
// there.
template <class T, int V, bool Activated, class Phase>
struct GatheredImage {
  using Element = T;
  using AtX = ImageAt;
  using Loaded = typename Source<T, V, Activated>::Loaded;
  static constexpr int kVector = V;
  static constexpr bool kAlongK = V > 1;

  const Phase& phase;
  Source<T, V, Activated> source;
  PixelRange<Phase> pixels;
  int count;  // pixels left from the block's first

  __device__ GatheredImage(const Phase& part, int64_t first_row, int group)
      : phase(part),
        source(part.params.input,
               int64_t{group} * part.params.inner_channels.divisor() * part.params.input.stride_c,
               part.params.grad_activation),
        pixels(part, first_row),
        count(part.rows() - first_row > kMostRows ? kMostRows : static_cast<int>(part.rows() - first_row)) {}

  __device__ ImageAt at_x(int x) const { return x < count ? image_at(phase, pixels.at(x)) : outside(); }
  __device__ TapAt at_k(int k, bool valid) const { return tap_offset(phase, k, valid); }
  __device__ Loaded load(const ImageAt& x, const TapAt& k) const {
    return source.load_if(sees(phase.params, x, k), x.offset + k.offset);
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const { return source.value(loaded); }

 private:
  static constexpr int kMostRows = 1 << 20;  // more than a tile has
};

// fprop B and dgrad B: k is a tap, x a channel of the result, which is a filter in fprop and an input channel
// in dgrad.
template <class T, int V, class Phase>
struct TapWeight {
  using Element = T;
  using AtX = LinearAt;
  using Loaded = Vector<T, V>;
  static constexpr bool kDgrad = Phase::kDgrad;
  static constexpr int kVector = V;
  // Vectors are of input channels: taps' channels in fprop, the result's in dgrad.
  static constexpr bool kAlongK = V == 1 || !kDgrad;

  const Phase& phase;
  const GenericParams& params;
  const T* base;
  int first;

  __device__ TapWeight(const Phase& part, int first_column, int group)
      : phase(part),
        params(part.params),
        base(static_cast<const T*>(params.weight.data) + part.weight_offset() +
             int64_t{group} * params.group_filters * params.weight.stride_n +
             first_column * x_stride(params)),
        first(first_column) {}

  __device__ LinearAt at_x(int x) const { return {x * x_stride(params), first + x < params.columns}; }
  __device__ LinearAt at_k(int k, bool valid) const {
    const Tap tap = tap_at(phase, k);
    const int64_t channel_stride = kDgrad ? params.weight.stride_n : params.weight.stride_c;
    return {tap.channel * channel_stride + tap.r * params.weight.stride_h + tap.s * params.weight.stride_w,
            valid};
  }
  __device__ Vector<T, V> load(const LinearAt& x, const LinearAt& k) const {
    return load_global_if<V>(x.valid && k.valid, base + (x.offset + k.offset));
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const { return loaded; }

 private:
  __device__ static int64_t x_stride(const GenericParams& p) {
    return kDgrad ? p.weight.stride_c : p.weight.stride_n;
  }
};

// wgrad A: x is a filter, k an output pixel.
template <class T, int V, bool Activated>
struct WgradGrad {
  using Element = T;
  using AtX = LinearAt;
  using Loaded = typename Source<T, V, Activated>::Loaded;
  static constexpr int kVector = V;
  static constexpr bool kAlongK = V == 1;

  const GenericParams& params;
  Source<T, V, Activated> source;
  PixelRange<WholePass> pixels;
  int first;

  __device__ WgradGrad(const WholePass& pass, int first_row, int group, int64_t first_pixel)
      : params(pass.params),
        source(params.grad, (int64_t{group} * params.group_filters + first_row) * params.grad.stride_c,
               params.grad_activation),
        pixels(pass, first_pixel),
        first(first_row) {}

  __device__ LinearAt at_x(int x) const {
    return {x * params.grad.stride_c, first + x < params.group_filters};
  }
  __device__ LinearAt at_k(int k, bool valid) const {
    const Pixel pixel = pixels.at(k);
    return {pixel.n * params.grad.stride_n + pixel.h * params.grad.stride_h + pixel.w * params.grad.stride_w,
            valid};
  }
  __device__ Loaded load(const LinearAt& x, const LinearAt& k) const {
    return source.load_if(x.valid && k.valid, x.offset + k.offset);
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const { return source.value(loaded); }
};

// wgrad B: x is a tap, k an output pixel; the input element that the tap sees there.
template <class T, int V>
struct WgradInput {
  using Element = T;
  using AtX = TapAt;
  using Loaded = Vector<T, V>;
  static constexpr int kVector = V;
  static constexpr bool kAlongK = false;

  const WholePass& pass;
  const GenericParams& params;
  const T* base;
  PixelRange<WholePass> pixels;
  int first;

  __device__ WgradInput(const WholePass& whole, int first_column, int group, int64_t first_pixel)
      : pass(whole),
        params(whole.params),
        base(static_cast<const T*>(params.input.data) +
             int64_t{group} * params.inner_channels.divisor() * params.input.stride_c),
        pixels(whole, first_pixel),
        first(first_column) {}

  __device__ TapAt at_x(int x) const { return tap_offset(pass, first + x, first + x < params.columns); }
  __device__ ImageAt at_k(int k, bool valid) const {
    return valid ? image_at(pass, pixels.at(k)) : outside();
  }
  __device__ Vector<T, V> load(const TapAt& x, const ImageAt& k) const {
    return load_global_if<V>(sees(params, k, x), base + (x.offset + k.offset));
  }
  __device__ Vector<T, V> value(const Loaded& loaded) const { return loaded; }
};

}  // namespace fastcnn::generic
