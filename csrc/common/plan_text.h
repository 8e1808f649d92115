// A plan as people read it: what the `plan` operator answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastcnn {

struct PlanText {
  std::string kernel;
  std::string tile;
  std::string reason;
  int64_t grid = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
  int splits = 1;
};

// The texts are this library's own and hold nothing that JSON would have to escape.
inline std::string to_json(const PlanText& plan) {
  const auto text = [](const char* key, const std::string& value) {
    return "\"" + std::string(key) + "\": \"" + value + "\", ";
  };
  const auto number = [](const char* key, auto value) {
    return "\"" + std::string(key) + "\": " + std::to_string(value);
  };
  return "{" + text("kernel", plan.kernel) + text("tile", plan.tile) + text("reason", plan.reason) +
         number("grid", plan.grid) + ", " + number("threads", plan.threads) + ", " +
         number("shared_bytes", plan.shared_bytes) + ", " + number("workspace_bytes", plan.workspace_bytes) +
         ", " + number("splits", plan.splits) + "}";
}

}  // namespace fastcnn
