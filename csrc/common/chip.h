// The facts of a GPU that the planner decides by.
#pragma once

#include <optional>
#include <string>

namespace fastcnn {

struct Chip {
  int compute_capability = 80;  // 10 * major + minor
  int sm_count = 108;
  int shared_bytes_per_block = 163 * 1024;  // the opt-in limit
};

// Plans can be asked for without a GPU. Counts are those of the SXM boards; an architecture's name stands for
// its largest chip here.
inline std::optional<Chip> chip_by_name(const std::string& name) {
  if (name == "A100" || name == "sm_80") return Chip{80, 108, 163 * 1024};
  if (name == "RTX3090" || name == "sm_86") return Chip{86, 82, 99 * 1024};
  if (name == "RTX4090" || name == "sm_89") return Chip{89, 128, 99 * 1024};
  if (name == "H100" || name == "H200" || name == "sm_90") return Chip{90, 132, 227 * 1024};
  return std::nullopt;
}

inline constexpr const char* kChipNames = "A100, RTX3090, RTX4090, H100, H200, sm_80, sm_86, sm_89, sm_90";

}  // namespace fastcnn
