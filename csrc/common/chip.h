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

// Plans can be asked for without a GPU. Counts are those of the SXM boards.
inline std::optional<Chip> chip_by_name(const std::string& name) {
  if (name == "A100") return Chip{80, 108, 163 * 1024};
  if (name == "RTX3090") return Chip{86, 82, 99 * 1024};
  if (name == "RTX4090") return Chip{89, 128, 99 * 1024};
  if (name == "H100" || name == "H200") return Chip{90, 132, 227 * 1024};
  return std::nullopt;
}

}  // namespace fastcnn
