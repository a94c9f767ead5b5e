// Evaluators that are functions of a row and nothing else: stand-ins for a network where the engine
// itself is tested or measured.
#pragma once

#include <cstdint>
#include <cstring>

#include "game/cards.h"
#include "game/encode.h"
#include "game/rng.h"

namespace shmzero {

/// Uniform policy over the legal actions (zeros for an empty mask), value 0.
inline void evaluate_uniform(const std::uint64_t mask, float* policy, float* value) {
  std::memset(policy, 0, kNumActions * sizeof *policy);
  const float share = mask != 0 ? 1.0f / static_cast<float>(count(mask)) : 0.0f;
  for_each_card(mask, [&](int action) { policy[action] = share; });
  *value = 0.0f;
}

/// A policy and a value in [0, 1) made of a hash of the row.
inline void evaluate_hash(const std::uint16_t* features, std::uint64_t mask, float* policy,
                          float* value) {
  std::uint64_t hash = mix(mask + 1);
  for (int i = 0; i < kNumFeatures; i += 4) {
    std::uint64_t word;
    std::memcpy(&word, features + i, sizeof word);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  const auto unit = [](std::uint64_t bits) {
    return static_cast<float>(mix(bits) >> 40) * 0x1.0p-24f;
  };
  std::memset(policy, 0, kNumActions * sizeof *policy);
  float total = 0.0f;
  for_each_card(mask, [&](int action) {
    total += policy[action] = 0.05f + unit(hash + static_cast<std::uint64_t>(action));
  });
  for_each_card(mask, [&](int action) { policy[action] /= total; });
  *value = unit(~hash);
}

}  // namespace shmzero
