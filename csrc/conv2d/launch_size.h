// How much of a problem one launch of a memory-bound kernel takes: 32-bit pixel indices, a one-dimensional
// grid.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/ceil_div.h"

namespace fastcnn {

// Half of what FastDiv can divide, so that indices in the last tile, past the end, still fit.
inline constexpr int64_t kLaunchPixels = int64_t{1} << 30;
inline constexpr int64_t kLaunchBlocks = (int64_t{1} << 31) - 1;

// Images per launch of at most launch_pixels indices, where every image has image_pixels of them, each of a
// block's pixel_threads takes one, and channel_tiles blocks share a pixel.
inline int images_per_launch(int images, int64_t image_pixels, int pixel_threads, int64_t channel_tiles,
                             int64_t launch_pixels) {
  const int64_t pixels = std::min(launch_pixels, (kLaunchBlocks / channel_tiles - 1) * pixel_threads);
  if (image_pixels > pixels) {
    throw std::runtime_error("fastcnn: an image of " + std::to_string(image_pixels) +
                             " pixels is too large, at most " + std::to_string(pixels) +
                             " are supported: cut the image");
  }
  if (images == 0 || image_pixels == 0) return std::max(1, images);
  return static_cast<int>(std::min<int64_t>(images, pixels / image_pixels));
}

}  // namespace fastcnn
